"""
What `AsyncGRPOTrainer` needs of vLLM and of a GPU, on a CPU: a server with the completions endpoint over a tiny model, a weight
transfer that copies into that model, and the tree attention in plain torch.
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


class LoopbackVLLM:
    """
    A server on loopback. It is also TRL's `WeightTransferProtocol`.

    Attributes:
        url (`str`): Where it listens.
        requests (`list[dict]`): Payloads of all requests so far, each with the `token_ids` of its answer.
        transfers (`int`): How often weights were received.
    """

    def __init__(self, model: str):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.requests, self.transfers = [], 0
        self.lock = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps({"choices": [served.complete(payload)]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # of a worker that has stopped, or was killed
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def complete(self, payload: dict) -> dict:
        """One completion, drawn as `payload["seed"]` says; it ends with the model's end of sequence, which is part of it."""
        end = self.model.generation_config.eos_token_id
        generator = torch.Generator().manual_seed(payload["seed"])
        ids, log_probs = list(payload["prompt"]), []
        with self.lock, torch.no_grad():
            self.requests.append(payload)
            for _ in range(payload["max_tokens"]):
                logits = self.model(torch.tensor([ids])).logits[0, -1] / payload["temperature"]
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
                ids.append(token)
                log_probs.append(float(logits.log_softmax(-1)[token]))
                if token == end:
                    break
            payload["token_ids"] = ids[len(payload["prompt"]) :]
        return {"token_ids": payload["token_ids"], "logprobs": {"token_logprobs": log_probs}}

    def init_weight_transfer(self):
        pass

    def pause(self):
        self.lock.acquire()

    def send_weights(self, iterator):
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in iterator:
                own.pop(name).copy_(weight)
        assert set(own) <= {"lm_head.weight"}, own.keys()  # which may be tied
        self.transfers += 1

    def resume(self):
        self.lock.release()

    def destroy(self):
        pass


def varlen_attention(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=None, causal=True, window_size=(-1, -1)):
    """What `flash_attn_varlen_func` computes, segment by segment; `q` is `(N, heads, dim)`."""
    assert causal and window_size == (-1, -1)
    repeats = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for i in range(len(cu_q) - 1):
        here = slice(int(cu_q[i]), int(cu_q[i + 1]))
        path = slice(int(cu_k[i]), int(cu_k[i + 1]))
        queries, keys, values = q[here], k[path].repeat_interleave(repeats, 1), v[path].repeat_interleave(repeats, 1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (softmax_scale or q.shape[-1] ** -0.5)
        length, known = len(queries), len(keys)
        ahead = torch.ones(length, known, dtype=torch.bool).triu(known - length + 1)  # a segment ends its path
        out[here] = torch.einsum("hqk,khd->qhd", scores.masked_fill(ahead, -torch.inf).softmax(-1), values)
    return out


class LoggedReward:
    """
    1 where a completion has its prompt's last digit, and easy prompts always, hard ones never; None where it is empty.

    Each call is a line in a file, so that the order in which completions were scored is known from outside.
    """

    __name__ = "digit"

    def __init__(self, file: Path):
        self.file = str(file)

    def __call__(self, prompts, completions, name, **kwargs):
        texts = [completion[-1].get("content") or "" for completion in completions]
        kinds = [prompt[0]["content"] for prompt in prompts]
        rewards = [
            None if not text else {"e": 1.0, "h": 0.0}.get(kind[0], float(kind[-1] in text))
            for kind, text in zip(kinds, texts, strict=True)
        ]
        assert len(set(name)) == 1 and len(name) == len(prompts)  # a column, as long as the round
        with open(self.file, "a") as file:
            file.write(json.dumps({"prompt": int(name[0].split()[-1]), "rewards": rewards}) + "\n")
        return rewards


def calls(file: Path) -> list[tuple[int, list[float | None]]]:
    """What [`LoggedReward`] wrote; a last line that is still being written is left out."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(call["prompt"], call["rewards"]) for call in found]
