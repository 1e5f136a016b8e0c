"""examples/sandbox.py against programs that want a point without the work, or worse."""

import contextlib
import json
import os
import re
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import sandbox  # noqa: E402


TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
LIMIT = re.compile(r"^(Max [a-z ]+?)  +(\w+) +(\w+)", re.MULTILINE)
RIGHT = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize("row", [json.loads(line) for line in open(EXAMPLES / "code_problems" / "train.jsonl")])
def test_the_bundled_problems_can_be_solved_and_failed(row):
    namespace = {}
    exec(row["solution"], namespace)
    for test in row["tests"]:
        exec(test, namespace)  # the plain meaning of a test
    assert sandbox.passes(row["solution"], row["tests"])
    (name,) = set(re.findall(r"assert (?:len\()?(\w+)\(", " ".join(row["tests"])))
    assert f"`{name}(" in row["prompt"][0]["content"]
    assert not sandbox.passes(f"def {name}(*args):\n    return None", row["tests"])


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (RIGHT, TESTS),
        (
            "def f():\n    return {'a': [1, (2.0, None)], 2: {True, 3}}",
            ["assert f() == {2: {3, True}, 'a': [1, (2, None)]}"],
        ),
        ("def f(x):\n    return x / 3", ["assert f(1) == 0.3333333333333333", "assert f(0.3) == 0.1"]),
        ("print('to the screen')\ndef f():\n    print('more')\n    return '\\ud800é'", ["assert f() == '\\ud800é'"]),
        ("import math, re, collections, itertools, random, decimal\nf = math.isqrt", ["assert f(17) == 4, 'root'"]),
        ("def f(n):\n    return sum(range(n))", ["assert sorted([f(3), f(2)]) == [1, 3]"]),
        ("import time\ndef f():\n    time.sleep(0.01)\n    return time.time() > 1e9", ["assert f() == True"]),
    ],
)
def test_honest_programs_pass(program, tests):
    assert sandbox.passes(program, tests)


CHEATS = {
    "wrong": "def add(a, b):\n    return a - b",
    "empty": "",
    "no Python": "Sure! Here is the function you asked for:",
    "null byte": "add = 1\0",
    "lone surrogate": "add = '\ud800'",
    "exit before the tests": "import sys\nsys.exit(0)",
    "hard exit before the tests": "import os\nos._exit(0)",
    "exit in the test": "def add(a, b):\n    raise SystemExit(0)",
    "the status of a broken sandbox": f"import os\nos._exit({sandbox.UNAVAILABLE})",
    "equal to everything": "class Yes:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Yes()",
    "an int equal to everything": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def add(a, b):\n    return Yes(3)"
    ),
    "patched comparison": (
        "import __main__\n__main__.same = lambda *args: True\n__main__.plain = lambda value: 0\ndef add(a, b):\n    return 1"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.all = lambda *args: True\nbuiltins.eval = lambda *args: True\ndef add(a, b):\n    pass"
    ),
    "forged results": "import os\nfor fd in range(20):\n    try:\n        os.write(fd, b'[true, true]')\n    except OSError:\n        pass\nos._exit(0)",
    "endless results": "import os\nwhile True:\n    for fd in range(20):\n        try:\n            os.write(fd, b'[' * 65536)\n        except OSError:\n            pass",
    "nested results": "import os\nfor fd in range(20):\n    try:\n        os.write(fd, b'[' * 100000)\n    except OSError:\n        pass\nos._exit(0)",
    "searches the memory for what is expected": (
        "import gc, sys\ndef add(a, b):\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        found.append(repr(frame.f_locals) + repr(frame.f_globals))\n        frame = frame.f_back\n"
        "    return 3 if any('== 3' in f for f in found) else None"
    ),
    "reads the problems": f"text = open({str(EXAMPLES / 'code_problems' / 'train.jsonl')!r}).read()\n{RIGHT}",
    "endless loop that ignores signals": (
        "import signal\nfor s in range(1, 32):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    ),
    "endless output": "while True:\n    print('x' * 100000)",
    "memory": "hog = bytearray(10**11)\n" + RIGHT,
    "memory by and by": "hog = []\nwhile True:\n    hog.append(bytearray(10**6))",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return add(a, b)",
    "huge integer": "def add(a, b):\n    return 10 ** 10 ** 10",
}


SLOW = {"endless output", "endless results", "deep recursion", "huge integer"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CHEATS])
def test_cheats_and_hogs_fail(name):
    start = time.monotonic()
    assert not sandbox.passes(CHEATS[name], TESTS, sandbox.Limits(cpu_seconds=1))
    assert time.monotonic() - start < 15


# What a program returns -> what is expected of it. Whatever it is, the score is a number.
RETURNED = {
    "an integer that no float holds": ("10**400", "0.5"),
    "a negative one": ("-(10**400)", "1e999"),
    "an integer of more digits than Python reads": ("10**5000", "1.0"),
    "not a number": ("float('nan')", "1.0"),
    "infinite": ("float('inf')", "1.0"),
    "not a number within": ("[float('nan')]", "[1.0]"),
    "an integer within": ("{'a': (10**400,)}", "{'a': (1.5,)}"),
    "nested": ("functools.reduce(lambda x, _: [x], range(900), 1)", "1.0"),
    "nested too deeply": ("functools.reduce(lambda x, _: [x], range(100000), 1)", "[1.0]"),
    "itself": ("(lambda x: x.append(x) or x)([])", "[1.0]"),
    "mixed in a set": ("{1, 'a', 10**400}", "{1.0}"),
    "many": ("list(range(10**6))", "[1.0]"),
    "hostile": (
        "type('X', (float,), {m: lambda *a: 1 / 0 for m in ('__eq__', '__repr__', '__hash__', '__float__', '__str__')})()",
        "0.0",
    ),
    "hostile in a dict": ("{type('X', (str,), {'__repr__': lambda self: 1 / 0})('a'): 1}", "{'a': 1}"),
    "a class": ("int", "1.0"),
    "a generator": ("(x for x in [1.0])", "[1.0]"),
    "complex": ("1j", "1.0"),
    "bytes": ("b'1'", "'1'"),
    "a lone surrogate": ("'\\ud800'", "1.0"),
    "what JSON would have been": ("{'tuple': [1.0]}", "(1.0,)"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_whatever_a_program_returns_the_score_is_a_number(name):
    value, expected = RETURNED[name]
    assert sandbox.passes(f"import functools\ndef f():\n    return {value}", [f"assert f() == {expected}"]) is False


def test_an_early_exit_after_the_right_answers_of_the_first_tests_fails():
    program = "calls = []\ndef add(a, b):\n    calls.append(1)\n    if len(calls) == 2:\n        raise SystemExit(0)\n    return a + b"
    assert sandbox.passes(program, TESTS[:1])
    assert not sandbox.passes(program, TESTS)


def test_sleep_is_cut_off():
    start = time.monotonic()
    assert not sandbox.passes("import time\ntime.sleep(600)", TESTS, sandbox.Limits(wall_seconds=0.5))
    assert time.monotonic() - start < 5


@pytest.fixture
def victim(tmp_path):
    """A file, a listening port, a process and an environment variable that no candidate may reach."""
    (tmp_path / "file").write_text("intact")
    (tmp_path / "folder").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server, subprocess.Popen(["sleep", "600"]) as process:
        server.settimeout(0.2)
        yield tmp_path, server, process
        process.kill()


# Each tells by its result whether it got through: `add` is right only if it did.
ATTEMPTS = {
    "write a file": "open('{path}/file', 'w').write('gone')",
    "append to a file": "open('{path}/file', 'a').write('gone')",
    "read a file": "open('{path}/file').read()",
    "list a folder": "__import__('os').listdir('{path}')",
    "create a file": "open('{path}/new', 'x')",
    "create a file here": "open('new', 'x')",
    "remove a file": "__import__('os').remove('{path}/file')",
    "rename a file": "__import__('os').rename('{path}/file', '{path}/other')",
    "remove a folder": "__import__('os').rmdir('{path}/folder')",
    "make it executable": "__import__('os').chmod('{path}/file', 0o777)",
    "link": "__import__('os').symlink('{path}/file', '{path}/link')",
    "truncate": "__import__('os').truncate('{path}/file', 0)",
    "change folder": "__import__('os').chdir('{path}')",
    "kill a process": "__import__('os').kill({pid}, 9)",
    "kill the trainer": "__import__('os').kill(__import__('os').getppid(), 9)",
    "stop its group": "__import__('os').killpg(0, 19)",
    "fork": "__import__('os').fork()",
    "run a program": "__import__('os').execv('/bin/sh', ['sh', '-c', 'touch {path}/new'])",
    "run a shell": "1 / (__import__('os').system('touch {path}/new') == 0)",
    "another thread": "__import__('_thread').start_new_thread(print, ())",
    "raise a limit": "__import__('resource').setrlimit(__import__('resource').RLIMIT_CPU, (100, 100))",
    "connect": "__import__('_socket').socket().connect(('127.0.0.1', {port}))",
    "native code": "'x'.index('y') if __import__('ctypes').CDLL(None).socket(2, 1, 0) < 0 else 0",
    "open by native code": "'x'.index('y') if __import__('ctypes').CDLL(None).open(b'{path}/file', 1) < 0 else 0",
    "environment": "__import__('os').environ['PATH']",
    "secret": "__import__('os').environ['SECRET_OF_THE_TEST']",
    "packages": "__import__('numpy')",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_outside_is_reached(name, victim, monkeypatch):
    path, server, process = victim
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    attempt = ATTEMPTS[name].format(path=path, port=server.getsockname()[1], pid=process.pid)
    program = f"{RIGHT}\n{attempt}\n"
    assert not sandbox.passes(program, TESTS)
    assert sandbox.passes(f"{RIGHT}\ntry:\n    {attempt}\nexcept BaseException:\n    pass\n", TESTS)  # it lived on
    assert (path / "file").read_text() == "intact" and not os.access(path / "file", os.X_OK) or os.getuid() == 0
    assert sorted(p.name for p in path.iterdir()) == ["file", "folder"]
    assert process.poll() is None
    with pytest.raises(TimeoutError):
        server.accept()


def test_a_fork_bomb_leaves_no_process_behind():
    def sandboxed() -> int:
        return sum("sandbox.py" in line for line in subprocess.check_output(["ps", "axww"], text=True).splitlines())

    bomb = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)"
    seen, done = [], threading.Event()

    def watch():
        while not done.wait(0.1):
            seen.append(sandboxed())

    before = sandboxed()
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert not sandbox.passes(bomb, TESTS, sandbox.Limits(wall_seconds=1))
    done.set()
    watcher.join()
    assert max(seen) == before + 1
    assert sandboxed() == before


def test_many_at_once():
    programs = [RIGHT, CHEATS["wrong"]] * 10
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda p: sandbox.passes(p, TESTS), programs)) == [True, False] * 10


def test_the_limits_are_in_place():
    """A second line of defence, so each is read from the kernel while a candidate runs."""
    limits = sandbox.Limits(cpu_seconds=7, wall_seconds=2, memory_mb=200, output_kb=8)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.passes, "import time\ntime.sleep(600)", TESTS, limits)
        found = {}
        while not running.done() and not found.get("Max processes") == ("0", "0"):
            for pid in subprocess.run(
                ["pgrep", "-f", "--", "-I -S .*sandbox.py"], capture_output=True, text=True
            ).stdout.split():
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{pid}/limits").read_text()
                    found = {name: (soft, hard) for name, soft, hard in LIMIT.findall(text)}
    wanted = {"Max cpu time": 7, "Max address space": 200 << 20, "Max file size": 8 << 10}
    wanted |= {"Max processes": 0, "Max core file size": 0}
    assert {name: found[name] for name in wanted} == {name: (str(n), str(n)) for name, n in wanted.items()}


@pytest.mark.parametrize(
    "test",
    ["add(1, 2) == 3", "assert add(1, 2)", "assert add(1, 2) == add(2, 1)", "assert 1 < add(1, 2) == 3", "assert ("]
    # Literals that are no plain data, hence could not be compared
    + ["assert add(1, 2) == b'3'", "assert add(1, 2) == 3j", "assert add(1, 2) == [...]"]
    + [f"assert add(1, 2) == {'[' * 5000}", f"assert add(1, 2) == {'-' * 100_000}1"],
)
def test_a_test_that_would_show_what_is_expected_is_refused(test):
    with pytest.raises(ValueError, match="must read `assert <expression> == <literal>`"):
        sandbox.passes(RIGHT, [test])


def test_no_tests_are_no_success():
    with pytest.raises(ValueError, match="without tests"):
        sandbox.passes(RIGHT, [])


def test_nothing_runs_on_a_machine_without_the_filter(tmp_path):
    """On an unknown processor, in a fresh process: the check is made once."""
    (tmp_path / "sandbox.py").write_text(
        (EXAMPLES / "sandbox.py").read_text().replace('"x86_64"', '"vax"').replace('"aarch64"', '"cray"')
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sandbox; sandbox.passes('def f(): return 1', ['assert f() == 1'])"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "SandboxError: No candidate was run: a seccomp filter cannot be installed on" in done.stderr


def test_the_reward_takes_the_last_code_block():
    reward = runpy.run_path(str(EXAMPLES / "train_code.py"))["tests_passed"]
    wrong = CHEATS["wrong"]
    completions = [
        RIGHT,
        f"First:\n```python\n{wrong}\n```\nBetter:\n```py\n{RIGHT}```\nDone.",
        f"```python\n{RIGHT}\n```\n```python\n{wrong}\n```",
        [{"role": "assistant", "content": f"```\n{RIGHT}"}],  # cut off
        "I cannot do that.",
    ]
    assert reward(completions, [TESTS] * 5) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY  # the trainer's own are untouched
