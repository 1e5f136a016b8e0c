"""The worker for TRL's asynchronous trainer, on a CPU: real loops, a real server on loopback, real training."""

import asyncio
import os
import queue
import re
import signal
import threading
import time
from collections import defaultdict
from multiprocessing import get_context
from types import SimpleNamespace

import async_oracle
import numpy as np
import pytest
import tiny_chat
import torch
import trl
from accelerate import PartialState
from loopback_vllm import LoggedReward, LoopbackVLLM, calls, varlen_attention
from snippets import ROOT, blocks
from transformers import TrainerCallback

from trl_knapsack import SuccessRateTracker
from trl_knapsack.experimental import RunningKnapsack
from trl_knapsack.tracking import find_state


async_grpo = pytest.importorskip("trl.experimental.async_grpo", reason="TRL 1.16 has the loop that is relied on")
packing = pytest.importorskip("trl.experimental.async_grpo.packing")
trainer_module = pytest.importorskip("trl.experimental.async_grpo.async_grpo_trainer")
worker_module = pytest.importorskip("trl.experimental.async_grpo.async_rollout_worker")
if not trl.__version__.startswith("1.16."):
    pytest.skip("written for TRL 1.16", allow_module_level=True)

from trl_knapsack.experimental import KnapsackRolloutWorker  # noqa: E402
from trl_knapsack.experimental.async_seams import DIGESTS, check_async_seams  # noqa: E402
from trl_knapsack.experimental.async_worker import _KnapsackRolloutLoop  # noqa: E402
from trl_knapsack.experimental.running_knapsack import round_advantages  # noqa: E402


PROMPTS = 24


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    return tiny_chat.save_model(tmp_path_factory.mktemp("chat_model"))


@pytest.fixture(scope="module")
def server(chat_model):
    with LoopbackVLLM(chat_model) as server:
        yield server


@pytest.fixture
def no_vllm_needed(monkeypatch):
    """TRL's worker wants vLLM to be installed, but talks to it over HTTP only, which the loopback server understands."""
    monkeypatch.setattr(worker_module, "is_vllm_available", lambda *args, **kwargs: True)


# ------------------------------------------------------------------------------------------------------- the knapsack


@pytest.mark.parametrize("seed", range(2))
def test_counts_are_those_of_a_plain_loop_over_exact_fractions(seed):
    rng = np.random.default_rng(seed)
    knapsack, window, owed = RunningKnapsack(8, max_generations=24), [], 0
    for _ in range(100):
        won, old = rng.choice([0, 0, 1, 2, 3, 3]), rng.choice([0.0, 0.85 * 5])
        alpha, beta = 1.0 + won + old, 4.0 - won
        window = [*window, (async_oracle.Fraction(alpha), async_oracle.Fraction(beta))][-async_oracle.WINDOW :]
        budget = min(max(len(window) * 8 + owed, len(window) * 3), len(window) * 24)
        expected = async_oracle.last_count(window, budget, look=3, most=24)
        assert knapsack.decide(alpha, beta) == expected
        owed += 8 - expected
        assert knapsack.owed == owed


@pytest.mark.parametrize(
    "rates", [(0.05, 0.3, 0.9), (1.0, 0.99, 0.6), (0.0, 0.01, 0.2), (0.5,)], ids=["mixed", "solved", "hard", "alike"]
)
def test_the_mean_stays_num_generations(rates):
    rng = np.random.default_rng(0)
    knapsack, counts = RunningKnapsack(8), []
    for _ in range(600):
        won = rng.binomial(3, rng.choice(rates))
        counts.append(knapsack.decide(1.0 + won, 4.0 - won))
    assert abs(np.mean(counts) - 8) < 0.1
    assert knapsack.owed == 8 * len(counts) - sum(counts)


def test_the_price_follows_a_change_of_the_prompts():
    """From prompts that are always solved to ones worth most, and back: what is spent in between is paid back."""
    knapsack = RunningKnapsack(8)
    solved = [knapsack.decide(4.0, 1.0) for _ in range(200)]
    price = knapsack.shadow_price
    worth_most = [knapsack.decide(2.0, 3.0) for _ in range(400)]
    assert worth_most[0] > 8 and knapsack.shadow_price > price
    assert solved[-1] == 8 and abs(np.mean(worth_most[-100:]) - 8) < 0.5
    assert abs(knapsack.owed) < 100


def test_the_same_bounds_give_equal_counts():
    knapsack = RunningKnapsack(8, max_generations=8)
    assert [knapsack.decide(*belief) for belief in [(1, 4), (4, 1), (2, 3)]] == [8, 8, 8]


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(num_generations=2), "num_generations (2) must be at least 3"),
        (dict(num_generations=8, look_generations=8), "look_generations (8) must lie between 2 and"),
        (dict(num_generations=8, look_generations=1), "look_generations (1) must lie between 2 and"),
        (dict(num_generations=8, max_generations=4), "max_generations (4) must be at least num_generations (8)"),
    ],
)
def test_options_that_contradict_each_other(options, named):
    with pytest.raises(ValueError) as error:
        RunningKnapsack(**options)
    assert named in str(error.value) and str(error.value).count(". ") == 0


# ----------------------------------------------------------------------------------------------------- the advantages


@pytest.mark.parametrize(
    "rewards, earlier", [([1, 0, None], []), ([1], [0, 0, 0]), ([None], [None]), ([0, 0], [1, None])]
)
def test_advantages_of_a_round(rewards, earlier):
    def array(values):
        return np.array([np.nan if v is None else v for v in values], dtype=float)

    ours, _ = round_advantages(array(rewards), array(earlier))
    assert ours == pytest.approx(async_oracle.advantages(rewards, earlier))


def outcomes(n, p):
    """All rewards of `n` rollouts that succeed with chance `p`, and how likely each is."""
    for bits in range(2**n):
        rewards = np.array([bits >> i & 1 for i in range(n)], dtype=float)
        yield rewards, p ** rewards.sum() * (1 - p) ** (n - rewards.sum())


def pull(rewards, compared_with, p):
    """Sum of advantage x d log p(reward) / dx, for p = sigmoid(x), without the division by the spread."""
    return ((rewards - compared_with.mean()) * (rewards - p)).sum()


def length_of_the_gradient(p, normalised):
    """c(p) of `docs/async.md`, over every outcome."""
    brought = due = 0.0
    if normalised == "one by one":
        for n in range(2, 17):
            for last in {0.0, 1.0} if n == 16 else {1.0}:
                rewards = np.array([0.0] * (n - 1) + [last])
                chance = (1 - p) ** (n - 1) * (p if last else 1 - p)
                brought += chance * pull(rewards, rewards, p)
                due += chance * (n - 1) * p * (1 - p)
        return brought / due
    for look, chance in outcomes(3, p):
        for rest, and_then in outcomes({0: 6, 1: 6, 2: 4, 3: 1}[int(look.sum())], p):
            everyone, both = np.concatenate([look, rest]), chance * and_then
            if normalised == "together":
                brought += both * pull(everyone, everyone, p)
                due += both * (len(everyone) - 1) * p * (1 - p)
            else:
                brought += both * (pull(look, look, p) + pull(rest, everyone, p))
                due += both * (2 + len(rest) * (1 - 1 / len(everyone))) * p * (1 - p)
    return brought / due


def test_a_rest_that_is_compared_with_its_look_is_unbiased_and_a_whole_group_is_not():
    """The table of the page."""
    text = (ROOT / "docs" / "async.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`c\(p\)`|rounds|a look|one by one)[^|]* \|(.*)\|$", text, re.MULTILINE)
    rates, ours, together, one_by_one = ([float(x) for x in cells.split("|")] for _, cells in table)
    for i, p in enumerate(rates):
        assert length_of_the_gradient(p, "rounds") == pytest.approx(1) == ours[i]
        assert length_of_the_gradient(p, "together") == pytest.approx(together[i], abs=6e-4)
        assert length_of_the_gradient(p, "one by one") == pytest.approx(one_by_one[i], rel=6e-3)


# -------------------------------------------------------------------------------- TRL's loop, in a thread of this process


def make_loop(server, tmp_path, tracker=None, success_reward_func=None, **options):
    """TRL's loop with our two methods, as its child process has it."""
    PartialState()  # as TRL's child process does, for accelerate's logger
    context = get_context("spawn")
    observations = queue.Queue()
    observations.cancel_join_thread = lambda: None  # of a queue between processes; here there is one
    defaults = dict(
        dataset=tiny_chat.prompts(PROMPTS),
        reward_funcs=[LoggedReward(tmp_path / "calls.jsonl")],
        max_tool_calling_iterations=0,
    )
    return _KnapsackRolloutLoop(
        knapsack=RunningKnapsack(),
        success_tracker=tracker or SuccessRateTracker(),
        success_threshold=0.5,
        success_reward_func=success_reward_func,
        prompt_id_column="name",
        observations=observations,
        model_name="tiny",
        processing_class=tiny_chat.tokenizer(),
        eos_token_ids=[1],
        rollout_buffer=queue.Queue(),
        model_version_value=context.Value("i", 0),
        heartbeat_value=context.Value("d", 0.0),
        failed_event=context.Event(),
        exception_info_queue=queue.Queue(),
        metrics_queue=queue.Queue(),
        vllm_server_url=server.url,
        max_inflight_tasks=12,
        max_tokens=4,
        **{**defaults, **options},
    )


def run_loop(server, tmp_path, rollouts, **options):
    """The loop until `rollouts` rows are there; they are returned, with what the tracker was told."""
    loop = make_loop(server, tmp_path, **options)
    rows = loop.rollout_buffer
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 300
    while rows.qsize() < rollouts and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
        loop._model_version_value.value = rows.qsize() // 40  # as if there were a step now and then
    assert thread.is_alive() and rows.qsize() >= rollouts
    loop._loop.call_soon_threadsafe(loop._stop_event.set)
    thread.join(timeout=30)
    assert not thread.is_alive() and not loop._failed_event.is_set()
    return [rows.get() for _ in range(rows.qsize())], list(loop._observations.queue), loop


def check_rows(rows, rounds):
    """Rows of each round in their order, with the oracle's advantages; the last round may be cut short by the end."""
    of_group = defaultdict(list)
    for row in rows:
        of_group[row.group_id].append(row)
    checked = 0
    for number, group in of_group.items():
        due = [pair for each in rounds[number % PROMPTS, number // PROMPTS] for pair in each]
        assert len(group) <= len(due)
        for row, (reward, advantage) in zip(group, due, strict=False):
            assert row.advantage == pytest.approx(advantage, abs=1e-6)
            assert row.metrics["reward"] == pytest.approx(np.nan if reward is None else reward, nan_ok=True)
            checked += 1
    return checked


def test_the_counts_of_every_group_follow_from_the_order_of_scored_completions(server, tmp_path):
    server.requests.clear()
    rows, observations, loop = run_loop(server, tmp_path, rollouts=320, lora_name="policy")
    scored = calls(tmp_path / "calls.jsonl")
    rounds, decided, prompts = async_oracle.replay(scored, PROMPTS, mean_generations=8, look=3, most=128)

    assert len(decided) > PROMPTS and len(set(decided.values())) > 3  # a second visit, and unequal groups
    assert check_rows(rows, rounds) == len(rows) >= 320
    assert [(o.key, o.rollouts) for o in observations] == [(f"prompt {p}", len(r)) for p, r in scored]
    evidence = loop._tracker.evidence([f"prompt {p}" for p in prompts.counts])
    assert evidence.alpha == pytest.approx([float(won) + 1 for won, _ in prompts.counts.values()])
    assert evidence.beta == pytest.approx([float(lost) + 1 for _, lost in prompts.counts.values()])

    asked = defaultdict(set)  # with a LoRA, a request names the policy's version
    for request in server.requests:
        asked[*request["prompt"], *request["token_ids"]].add(int(request["model"].removeprefix("policy-v")))
    for row in rows:  # the version may have moved on between the loop's look at it and the request
        assert asked[*row.input_ids.tolist()] & {row.model_version, row.model_version + 1}


def test_hard_prompts_get_more_than_easy_ones_once_they_are_known(server, tmp_path):
    known = SuccessRateTracker()
    kinds = tiny_chat.prompts(PROMPTS)["prompt"]
    for i, prompt in enumerate(kinds):
        won = {"e": 20, "m": 6, "h": 0}[prompt[0]["content"][0]]
        known.observe([f"prompt {i}"], [won], [20])
    told = [(i, *(float(x) - 1 for x in belief)) for i, belief in enumerate(zip(*_belief(known), strict=True))]
    run_loop(server, tmp_path, rollouts=150, tracker=known)
    _, decided, _ = async_oracle.replay(calls(tmp_path / "calls.jsonl"), PROMPTS, 8, 3, 128, known=told)
    of_kind = defaultdict(list)
    for (prompt, _), count in decided.items():
        of_kind[kinds[prompt][0]["content"][0]].append(count)
    assert np.mean(of_kind["m"]) > np.mean(of_kind["e"]) + 2


def _belief(tracker):
    evidence = tracker.evidence([f"prompt {i}" for i in range(PROMPTS)])
    return evidence.alpha, evidence.beta


class Graded:
    """A second reward, without which some completions are not scored at all."""

    __name__ = "graded"

    def __call__(self, completions, **kwargs):
        return [None if len(c[-1].get("content") or "") % 2 else 0.25 for c in completions]


def test_several_rewards_and_conversations_of_several_rows(server, tmp_path):
    """Tools that are called in vain fork conversations into several rows; where all functions say None there is no reward."""
    rows, observations, _ = run_loop(
        server,
        tmp_path,
        rollouts=150,
        reward_funcs=[Graded(), LoggedReward(tmp_path / "calls.jsonl")],
        success_reward_func="digit",
        max_tool_calling_iterations=2,
        fork_threshold_tokens=0,
    )
    scored = calls(tmp_path / "calls.jsonl")
    async_oracle.replay(scored, PROMPTS, 8, 3, 128)  # digit alone decides
    assert any(None in rewards for _, rewards in scored)
    assert [o.trials for o in observations] == [sum(r is not None for r in rewards) for _, rewards in scored]
    assert len(rows) > sum(len(rewards) for _, rewards in scored)
    assert all(row.completion_mask.any() for row in rows)


def test_a_completion_without_any_row_keeps_its_reward(server, tmp_path):
    """Our two methods by hand: two prompts at once, whose rollouts come back in turns, and one has no token to train."""
    loop = make_loop(server, tmp_path)
    asked = loop._repeat_iterator()
    names = tiny_chat.prompts(PROMPTS)["name"]
    easy, digit = [next(asked) for _ in range(3)], [next(asked) for _ in range(6)][3:]  # "e00" and "m02"

    def group(number, row, text):
        ids = [[5, 6], [7, 8]]
        sequence = worker_module.TrainingSequence([*ids[0], *ids[1]], [0, 0, 1, 1], [0.0, 0.0, -1.0, -1.0], "")
        return worker_module.RolloutGroup(
            prompts=[row["prompt"]],
            reward_kwargs={"name": [row["name"]]},
            completions=[[{"role": "assistant", "content": text}]],
            completions_ids=[ids[1]],
            completions_sequences=[[sequence] if text != "3" else []],
            tool_call_counts=[0],
            tool_failure_counts=[0],
            model_version=number,
            group_id=number,
            env_rewards=[],
            rollout_rewards=[None],
        )

    async def score(rollout, text):
        return await loop._score_group(group(*rollout, text))

    async def run():
        assert [await score(rollout, "1") for rollout in (easy[0], digit[0], digit[1], easy[1])] == [[]] * 4
        return await score(digit[2], "3"), await score(easy[2], "1")

    of_digit, of_easy = asyncio.run(run())
    assert [row.group_id for row in of_digit] == [2, 2] and [row.group_id for row in of_easy] == [0, 0, 0]
    assert [row.model_version for row in of_easy] == [0, 1, 2]
    assert calls(tmp_path / "calls.jsonl") == [(2, [0.0, 0.0, 0.0]), (0, [1.0, 1.0, 1.0])]
    assert [o[:4] for o in loop._observations.queue] == [(names[2], 0, 3, 3), (names[0], 3, 3, 3)]
    rest = [next(asked)[1]["name"] for _ in range(5)]
    assert rest == [names[2]] * 5  # of the first that was decided upon, before any further look


# -------------------------------------------------------------------------------------------------------- what is refused


def test_a_loop_that_differs_is_refused():
    check_async_seams(worker_module)
    for name in DIGESTS:
        with pytest.raises(ImportError, match=rf"has another {name} .*install a TRL that works: trl==1\.16"):
            check_async_seams(worker_module, {**DIGESTS, name: "0" * 12})
    with pytest.raises(ImportError, match="has another _AsyncRolloutLoop._generate_loop"):
        check_async_seams(SimpleNamespace(__name__="renamed"))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(success_reward_func="length"), "success_reward_func 'length' is not a reward of this run"),
        (dict(success_threshold=float("nan")), "success_threshold (nan) must be a finite reward"),
        (dict(num_generations=2), "num_generations (2) must be at least 3"),
        (dict(success_state_path="nowhere"), "does not exist, so there are no success rates"),
    ],
)
def test_options_that_are_refused_before_anything_starts(no_vllm_needed, tmp_path, options, named):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        KnapsackRolloutWorker(reward_funcs=[LoggedReward(tmp_path / "calls.jsonl")], **options)
    assert named in str(error.value)


# ---------------------------------------------------------------------------------------------------- the whole trainer


@pytest.fixture
def on_a_cpu(monkeypatch, no_vllm_needed):
    """TRL's tree attention with a plain kernel in the place of FlashAttention's, and no GPU to ask for its speed."""
    kernel = SimpleNamespace(flash_attn_varlen_func=varlen_attention)
    monkeypatch.setattr(packing, "_flash_attn", lambda: kernel)
    monkeypatch.setattr(trainer_module, "get_peak_flops_per_device", lambda *args: None)


def config(server, folder, **options):
    small = dict(
        output_dir=str(folder),
        vllm_server_base_url=server.url,
        per_device_train_batch_size=24,
        max_inflight_tasks=12,
        max_completion_length=4,
        max_tool_calling_iterations=0,
        token_budget=-1,
        max_steps=6,
        save_steps=3,
        learning_rate=1e-2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    return async_grpo.AsyncGRPOConfig(**{**small, **options})


def train(model, server, folder, log, resume=None, **options):
    """A short run; returns the trainer and its worker."""
    trainer = async_grpo.AsyncGRPOTrainer(
        model=model,
        reward_funcs=LoggedReward(log),
        args=config(server, folder),
        train_dataset=tiny_chat.prompts(PROMPTS),
        processing_class=tiny_chat.tokenizer(),
        weight_transfer=server,
    )
    worker = KnapsackRolloutWorker.for_trainer(trainer, prompt_id_column="name", **options)
    with pytest.raises(ValueError, match="must be TRL's own and not have started"):
        KnapsackRolloutWorker.for_trainer(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, worker


def saved(path) -> dict[int, tuple[float, float]]:
    """Prompt -> successes and failures, of a state file."""
    tracker = SuccessRateTracker()
    tracker.load(find_state(path))
    evidence = tracker.evidence(tracker.keys)
    return {
        int(key.split()[-1]): (won - 1, lost - 1)
        for key, won, lost in zip(tracker.keys, evidence.alpha, evidence.beta, strict=True)
    }


def is_a_moment_of(state, scored, known=()) -> bool:
    """Whether the state is what was known after some of the calls."""
    for n in range(len(scored) + 1):
        then = async_oracle.replay(scored[:n], PROMPTS, 8, 3, 128, known)[2].counts
        if then.keys() == state.keys() and all(state[p] == pytest.approx([*map(float, then[p])]) for p in then):
            return True
    return False


@pytest.mark.slow
def test_a_run_on_the_cpu_and_one_that_resumes_it(chat_model, server, on_a_cpu, tmp_path):
    before, transfers = {n: w.clone() for n, w in server.model.named_parameters()}, server.transfers
    trainer, _ = train(chat_model, server, tmp_path / "run", tmp_path / "calls.jsonl")

    scored = calls(tmp_path / "calls.jsonl")
    rounds, decided, _ = async_oracle.replay(scored, PROMPTS, 8, 3, 128)
    assert len(set(decided.values())) > 2
    logged = [entry for entry in trainer.state.log_history if "knapsack/generations/mean" in entry]
    assert logged and all(3 <= e["knapsack/generations/min"] <= e["knapsack/generations/max"] for e in logged)
    assert max(e["knapsack/generations/max"] for e in logged) <= max(decided.values())
    assert 0 <= logged[-1]["knapsack/success_rate"] <= 1 and logged[-1]["knapsack/shadow_price"] >= 0

    assert trainer.state.global_step == 6 and server.transfers == transfers + 7
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, dict(server.model.named_parameters())[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in server.model.named_parameters())

    checkpoint = tmp_path / "run" / "checkpoint-3"
    known = saved(checkpoint)
    assert known and is_a_moment_of(known, scored) and is_a_moment_of(saved(tmp_path / "run"), scored)

    train(
        chat_model, server, tmp_path / "run", tmp_path / "more.jsonl", str(checkpoint), success_state_path=checkpoint
    )
    known = [(prompt, *counts) for prompt, counts in known.items()]
    more = calls(tmp_path / "more.jsonl")
    async_oracle.replay(more, PROMPTS, 8, 3, 128, known)
    assert is_a_moment_of(saved(tmp_path / "run"), more, known)


class Kill(TrainerCallback):
    """Kills the worker's process after the first step."""

    trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        os.kill(self.trainer.rollout_worker._process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_example_of_the_page_and_a_worker_that_is_killed(chat_model, server, on_a_cpu, tmp_path):
    """TRL's own health check ends the run."""
    ((code, _),) = blocks(ROOT / "docs" / "async.md", "py")
    killer = Kill()

    def build(**kwargs):
        killer.trainer = async_grpo.AsyncGRPOTrainer(
            processing_class=tiny_chat.tokenizer(), weight_transfer=server, callbacks=[killer], **kwargs
        )
        return killer.trainer

    code = code.replace('"Qwen/Qwen3-0.6B"', repr(chat_model)).replace("AsyncGRPOTrainer(", "_trainer(")
    code = code.replace("AsyncGRPOConfig(", "_config(").replace("load_dataset(", "_dataset(")
    namespace = {
        "__name__": "__main__",
        "_trainer": build,
        "_config": lambda folder, **options: config(
            server, tmp_path, max_steps=1000, heartbeat_stale_after_s=2, **options
        ),
        "_dataset": lambda *args, **kwargs: tiny_chat.prompts(PROMPTS, solution=["$1$"] * PROMPTS),
    }
    with pytest.raises(RuntimeError, match="heartbeat stale"):
        exec(compile(code, "docs/async.md", "exec"), namespace)
    assert type(killer.trainer.rollout_worker) is KnapsackRolloutWorker
    assert 1 <= killer.trainer.state.global_step < 1000
