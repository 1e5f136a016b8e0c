"""
Runs the code that a model wrote against tests, so that neither the score nor the machine is at its mercy.

    passes("def add(a, b):\n    return a + b", ["assert add(1, 2) == 3"])  # True

The candidate never sees what is expected. Of `assert add(1, 2) == 3` only `add(1, 2)` goes to a process of its own; what
comes back is plain data, and compared here. So an early `sys.exit(0)`, an `__eq__` that is always true, or a patched
`assert` gains nothing. The process cannot hurt the machine either:

| | Prevented by |
|---|---|
| endless loops, sleeping, memory, output | CPU, address space and file size limits; the process group is killed after `wall_seconds` |
| files (reading too), network, other processes, signals | a seccomp filter with the few system calls that computing needs, all others fail |
| environment variables, the packages of this environment | empty environment, `python -I -S`, empty working directory |

What it does not protect against: bugs of the kernel in those few system calls, side channels such as timing, and candidates
that learn the inputs of your tests (they may keep a table of them, but have to know the results). All candidates of a
machine share its cores. For code that means harm use a virtual machine.

Linux only, on x86-64 or arm64: elsewhere nothing is run, and `SandboxError` is raised.
"""

# This file is also the program of the sandboxed process: it imports the standard library only, and before the filter is
# in place everything that a candidate may import.
import ast
import bisect  # noqa: F401
import calendar  # noqa: F401
import cmath  # noqa: F401
import collections  # noqa: F401
import copy  # noqa: F401
import ctypes
import dataclasses
import datetime  # noqa: F401
import decimal  # noqa: F401
import enum  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math
import operator  # noqa: F401
import os
import platform
import random  # noqa: F401
import re  # noqa: F401
import resource
import signal
import statistics  # noqa: F401
import string  # noqa: F401
import struct
import sys
import textwrap  # noqa: F401
import time  # noqa: F401
import typing  # noqa: F401


UNAVAILABLE = 86  # exit status of a process that could not lock itself in

# brk clock_gettime clock_nanosleep close exit exit_group fstat futex getpid getrandom getrusage gettimeofday lseek madvise
# mmap mprotect mremap munmap nanosleep restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sched_yield sigaltstack
# write: numbers from Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        [12, 228, 230, 3, 60, 231, 5, 202, 39, 318, 98, 96, 8, 28, 9, 10, 25, 11, 35, 219, 13, 14, 15, 24, 131, 1],
    ),
    "aarch64": (
        0xC00000B7,
        [214, 113, 115, 57, 93, 94, 80, 98, 172, 278, 165, 169, 62, 233]
        + [222, 226, 216, 215, 101, 128, 134, 135, 139, 124, 132, 64],
    ),
}


class SandboxError(RuntimeError):
    """The sandbox cannot be set up on this machine, so nothing was run."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """
    What one candidate may use, for all its tests together.

    Args:
        cpu_seconds (`int`, *optional*, defaults to `3`): Processor time. Does not depend on how busy the machine is.
        wall_seconds (`float`, *optional*, defaults to `15.0`): Time by the clock, for candidates that sleep.
        memory_mb (`int`, *optional*, defaults to `256`): Address space, the interpreter's 30 MB included.
        output_kb (`int`, *optional*, defaults to `256`): Results of the tests, as text. What is printed is thrown away.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 15.0
    memory_mb: int = 256
    output_kb: int = 256


def passes(program: str, tests: list[str], limits: Limits | None = None) -> bool:
    """
    Whether a program passes all tests.

    Args:
        program (`str`): Python source that defines what the tests call. The standard library is at hand.
        tests (`list[str]`): Each `assert <expression> == <literal>`, as most in MBPP's `test_list`.
        limits ([`Limits`], *optional*): What the candidate may use.

    Returns:
        `bool`: `False` also if the program ends early, fails, or goes beyond a limit.

    Raises:
        ValueError: If a test is not of that form, or if there is none.
        SandboxError: If this machine cannot lock a process in.
    """
    if not tests:
        raise ValueError("A program without tests (0) cannot pass; give at least one.")
    calls, expected = zip(*map(split_test, tests), strict=True)
    check_sandbox()
    status, results = run(program, list(calls), limits or Limits())
    if status != 0:
        return False
    try:
        got = json.loads(results)
    except (ValueError, RecursionError):
        return False
    return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, map(plain, expected)))


@functools.cache
def check_sandbox() -> None:
    """Run nothing in the sandbox, once: raise `SandboxError` if this machine cannot lock a process in."""
    status, results = run("", [], Limits())
    if status == UNAVAILABLE:
        raise SandboxError(
            f"No candidate was run: a seccomp filter cannot be installed on {platform.system()} {platform.machine()}; "
            "use Linux on x86-64 or arm64, in a container that permits seccomp."
        )
    if results != b"[]":
        raise SandboxError(
            f"No candidate was run: an empty program should end with status 0 in the sandbox, not {status} (None: not at "
            f"all); see what `{sys.executable} -I -S {__file__}` says."
        )


def run(program: str, calls: list[str], limits: Limits) -> tuple[int | None, bytes]:
    """Exit status of the sandboxed process, `None` beyond `wall_seconds`, and what it says of the calls' results."""
    import subprocess  # not for the candidate
    import tempfile

    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as task, tempfile.TemporaryFile() as results:
        task.write(json.dumps({"program": program, "calls": calls, "limits": dataclasses.asdict(limits)}).encode())
        task.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__)],
            stdin=task,
            stdout=results,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=empty,
            start_new_session=True,  # a group of its own, to be killed as one
        )
        try:
            status = process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        results.seek(0)
        return status, results.read()


def split_test(test: str) -> tuple[str, object]:
    """`"assert add(1, 2) == 3"` -> `("add(1, 2)", 3)`"""
    try:
        (statement,) = ast.parse(test.strip()).body
        comparison = statement.test
        (operator_,), (right,) = comparison.ops, comparison.comparators
        if not isinstance(statement, ast.Assert) or not isinstance(operator_, ast.Eq):
            raise ValueError
        expected = ast.literal_eval(right)
        plain(expected)  # bytes, say, could not be compared
        return ast.unparse(comparison.left), expected
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        raise ValueError(
            f"The test {test!r} must read `assert <expression> == <literal>`; rewrite or leave it out."
        ) from None


def plain(value: object) -> object:
    """A value as JSON knows it; what is no plain data, subclasses included, is an error."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [plain(item) for item in value]
    if kind is tuple:
        return {"tuple": [plain(item) for item in value]}
    if kind in (set, frozenset):
        return {"set": sorted((plain(item) for item in value), key=json.dumps)}
    if kind is dict:
        return {"dict": sorted(([plain(key), plain(item)] for key, item in value.items()), key=json.dumps)}
    raise TypeError(f"{kind.__name__} is no plain data")


def same(got: object, expected: object) -> bool:
    """Equality of two values from `plain`; floats may differ in their last digits."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, float) and type(got) in (int, float):
        try:
            return got == expected or math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)
        except OverflowError:  # an integer larger than any float: 10**400
            return False
    return got == expected and not isinstance(got, dict | list)


# --------------------------------------------------------------------------------------------- in the sandboxed process


def allow_computing_only() -> None:
    """Install the seccomp filter; it cannot be taken off again, and holds for every thread and native code too."""
    audit, allowed = ARCHITECTURES[platform.machine()]
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000 | 1  # EPERM
    program = [
        (load, 0, 0, 4),  # struct seccomp_data: nr, arch, ...
        (jump_if_equal, 1, 0, audit),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),
        *((jump_if_equal, len(allowed) - i, 0, number) for i, number in enumerate(allowed)),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(instructions)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if prctl(set_no_new_privileges, 1, 0, 0, 0) or prctl(set_seccomp, filter_mode, header, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def run_candidate() -> None:
    """Read a program and calls from standard input, and write the calls' results to standard output."""
    task = json.load(sys.stdin)
    limits = task["limits"]
    results = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        prctl = ctypes.CDLL(None).prctl
        prctl(1, signal.SIGKILL, 0, 0, 0)  # die with the trainer
        for what, most in (
            (resource.RLIMIT_CPU, limits["cpu_seconds"]),
            (resource.RLIMIT_AS, limits["memory_mb"] << 20),
            (resource.RLIMIT_FSIZE, limits["output_kb"] << 10),
            (resource.RLIMIT_NPROC, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))
        allow_computing_only()
    except Exception:
        os._exit(UNAVAILABLE)
    namespace = {"__name__": "candidate"}
    exec(compile(task["program"], "candidate", "exec"), namespace)
    text = json.dumps([plain(eval(call, namespace)) for call in task["calls"]]).encode()
    while text:
        text = text[os.write(results, text) :]
    os._exit(0)


if __name__ == "__main__":
    run_candidate()
