"""
Tests with vLLM on the CPU. They need an environment of their own, because vLLM pins other versions: `make test-vllm`.

(The folder is not called `vllm`, since it would then pass for the package where that is not installed.)
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tiny_chat
import torch


HAS_VLLM = importlib.util.find_spec("vllm") is not None
FOR_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_SERVER_DEV_MODE": "1",  # the endpoints that TRL's client asks for
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}
os.environ.update(FOR_CPU)


def pytest_configure(config):
    config.addinivalue_line("markers", "vllm: needs vLLM; runs with `make test-vllm`, is skipped without vLLM")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not HAS_VLLM:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; `make test-vllm` runs these tests"))


@pytest.fixture(scope="session")
def plain_linear_layers():
    """vLLM packs the weights of linear layers for the CPU, and TRL can't load new weights into what is packed."""
    from vllm.model_executor.layers import utils

    def unpacked(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = unpacked


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Address of a vLLM server for the tiny model, and the model's folder."""
    model = tiny_chat.save_model(tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--logprobs-mode", "processed_logprobs", "--max-model-len", "128"]
    command += ["--dtype", "float32"]  # as the trainer; TRL lets the server choose, and it would choose bfloat16
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                pytest.fail(f"The vLLM server stopped:\n{log.read_text()[-4000:]}")
            try:
                urllib.request.urlopen(f"{address}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        else:
            pytest.fail(f"The vLLM server did not answer:\n{log.read_text()[-4000:]}")
        yield address, model
    finally:
        process.terminate()
        process.wait(timeout=60)
