import asyncio
import copy
import functools
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from trl.trainer.utils import get_callable_name, is_async_callable

from anyo_rl.training.rewards.check import DeferredErrors, RewardError, check_reward_output, guard, raise_together

SAMPLE = {"prompts": ["p0", "p1", "p2"], "completions": ["c0", "c1", "c2"], "rank": [1, None, 3]}
BATCH = {**SAMPLE, "completion_ids": [[1], [2], [3]], "user_id": ["u0", "u1", "u2"], "trainer_state": object()}


def inverse_rank(rank, **kwargs):
    return [1 / r for r in rank]


async def async_inverse_rank(rank, **kwargs):
    await asyncio.sleep(0)
    return inverse_rank(rank)


class Callable_:
    def __init__(self, values):
        self.values = values
        self.__name__ = "named"

    def __call__(self, completions, **kwargs):
        return self.values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0.5, None], [1.0, 0.5, None]),
        ((True, False, np.float32(0.5)), [1.0, 0.0, 0.5]),
        ([np.int64(2), torch.tensor(1.5), -1], [2.0, 1.5, -1.0]),
        (np.array([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), [1.0, 2.0, 3.0]),
        ([None, None, None], [None, None, None]),
    ],
)
def test_good_output_becomes_floats(values, expected):
    checked = check_reward_output("mine", values, 3, SAMPLE)
    assert checked == expected
    assert all(value is None or type(value) is float for value in checked)


@pytest.mark.parametrize(
    ("values", "message", "shown"),
    [
        ([1.0, 2.0], "reward 'mine' returned 2 values for 3 completions, expected one each", "c2"),
        ([1.0] * 4, "returned 4 values for 3 completions", "c2"),
        ([], "returned 0 values for 3 completions", "c0"),
        ([1.0, float("nan"), 1.0], "returned nan for completion 1, expected a finite number; return None", "c1"),
        ([1.0, 1.0, float("-inf")], "returned -inf for completion 2", "c2"),
        (np.array([1.0, np.nan, 1.0]), "returned nan for completion 1", "c1"),
        (["good", 1.0, 1.0], "returned 'good' (a str) for completion 0", "c0"),
        ([1.0, [1.0], 1.0], "returned [1.0] (a list) for completion 1", "c1"),
        ([1.0, 1.0, 1j], "returned 1j (a complex) for completion 2", "c2"),
        ([1.0, torch.ones(2), 1.0], "(a Tensor) for completion 1", "c1"),
        (1.0, "returned 1.0 (a float), expected a list", "c0"),
        (None, "returned None (a NoneType), expected a list", "c0"),
        ("abc", "returned 'abc' (a str), expected a list", "c0"),
        ({"a": 1}, "(a dict), expected a list", "c0"),
        ((x for x in [1.0]), "(a generator), expected a list", "c0"),
        (np.ones((3, 1)), "returned shape (3, 1), expected (3,)", "c0"),
        (torch.tensor(1.0), "expected", "c0"),
    ],
)
def test_bad_output_names_the_reward_and_shows_the_sample(values, message, shown):
    with pytest.raises(RewardError, match=re.escape(message)) as caught:
        check_reward_output("mine", values, 3, SAMPLE)
    assert f"completions: '{shown}'" in str(caught.value)
    assert f"prompts: 'p{shown[1]}'" in str(caught.value)


def test_no_completions_and_long_samples():
    assert check_reward_output("mine", [], 0, {"completions": []}) == []
    with pytest.raises(RewardError, match="returned 1 values for 0 completions"):
        check_reward_output("mine", [1.0], 0, {"completions": []})
    with pytest.raises(RewardError) as caught:
        check_reward_output("mine", [float("nan")], 1, {"completions": ["x" * 10_000]})
    assert len(str(caught.value)) < 600
    assert "(10002 characters)" in str(caught.value)


def test_guard_passes_good_rewards_through():
    guarded = guard(inverse_rank)
    assert guarded(**{**BATCH, "rank": [1, 2, 4]}) == [1.0, 0.5, 0.25]
    assert get_callable_name(guarded) == "inverse_rank"
    assert guard(guarded) is guarded
    assert get_callable_name(guard(Callable_([1.0] * 3))) == "named"
    assert get_callable_name(guard(functools.partial(inverse_rank, scale=2))) == "inverse_rank"
    assert pickle.loads(pickle.dumps(guarded))(**{**BATCH, "rank": [1, 1, 1]}) == [1.0, 1.0, 1.0]


def test_guard_gives_reward_models_back():
    model = torch.nn.Linear(1, 1)
    assert guard(model) is model
    assert guard("path/to/model") == "path/to/model"


def test_an_exception_shows_the_completion_it_comes_from():
    with pytest.raises(RewardError) as caught:
        guard(inverse_rank)(**BATCH)
    message = str(caught.value)
    assert message.startswith("reward 'inverse_rank' raised TypeError")
    assert "on completion 1 of 3\nsample 1:" in message
    assert "completions: 'c1'" in message
    assert "rank: None" in message
    assert "user_id" not in message  # not a column it uses
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_exception_of_the_batch_shows_the_first_sample():
    def no_batches(completions, **kwargs):
        if len(completions) > 1:
            raise LookupError("one at a time")

    with pytest.raises(
        RewardError, match=r"raised LookupError: one at a time, on a batch of 3 .*first is shown"
    ) as caught:
        guard(no_batches)(**BATCH)
    assert "completions: 'c0'" in str(caught.value)


def test_each_reward_has_columns_of_its_own():
    columns = {**BATCH, "rank": [1, 2, 4], "steps": [["a"], ["b", "c"], []], "excluded": [{"i"}, set(), set()]}
    columns["prompts"] = [[{"role": "user", "content": "p"}] for _ in range(3)]
    columns["trainer_state"] = None
    before = copy.deepcopy(columns)

    def spoils(rank, steps, prompts, completion_ids, excluded, **kwargs):
        rank[:] = [9] * 3
        steps[1].clear()
        prompts[0][0]["content"] = "other"
        completion_ids[0].append(7)
        excluded[0].clear()
        return [0.0] * 3

    async def spoils_later(**columns):
        return spoils(**columns)

    assert guard(spoils)(**columns) == [0.0] * 3
    assert asyncio.run(guard(spoils_later)(**columns)) == [0.0] * 3
    assert columns == before
    assert guard(inverse_rank)(**columns) == [1.0, 0.5, 0.25]


def test_what_an_error_shows_is_what_the_reward_was_given():
    def spoils(rank, **kwargs):
        rank[:] = [9] * len(rank)
        raise ValueError("no")

    with pytest.raises(RewardError, match="rank: 3"):
        guard(spoils)(**{**BATCH, "rank": [3, 2, 1]})


def test_a_reward_that_exits_has_failed():
    def leaves(rank, **kwargs):
        sys.exit(0) if 2 in rank else None
        return [0.0] * len(rank)

    async def leaves_later(**columns):
        return leaves(**columns)

    with pytest.raises(RewardError, match="reward 'leaves' raised SystemExit: 0, on completion 1 of 3"):
        guard(leaves)(**{**BATCH, "rank": [1, 2, 3]})
    with pytest.raises(RewardError, match="reward 'leaves_later' raised SystemExit: 0"):
        asyncio.run(guard(leaves_later)(**{**BATCH, "rank": [1, 2, 3]}))
    errors = []
    assert guard(leaves, errors)(**{**BATCH, "rank": [1, 2, 3]}) == [0.0] * 3  # on one process of several
    assert len(errors) == 1


def test_a_reward_that_names_no_column_shows_them_all():
    def anything(**kwargs):
        return [0.0, float("inf"), 0.0]

    with pytest.raises(RewardError, match="user_id: 'u1'"):
        guard(anything)(**BATCH)


def test_a_missing_column_is_named_with_the_columns_there_are():
    def my_reward(ranks, **kwargs):
        return [0.0] * len(ranks)

    message = (
        "reward 'my_reward' asks for column 'ranks' (did you mean 'rank'?); "
        "the columns are completion_ids, completions, prompts, rank, user_id."
    )
    with pytest.raises(RewardError, match=re.escape(message)):
        guard(my_reward)(**BATCH)


def test_a_reward_without_kwargs_is_told_so():
    with pytest.raises(RewardError, match=r"does not take completion_ids, .*let its parameters end with \*\*kwargs"):
        guard(lambda completions, rank: [0.0] * 3)(**BATCH)


def test_a_type_error_inside_the_reward_is_not_taken_for_a_missing_column():
    def my_reward(rank, **kwargs):
        return inverse_rank()

    with pytest.raises(RewardError, match=r"raised TypeError: inverse_rank\(\) missing 1 required"):
        guard(my_reward)(**BATCH)


def test_async_rewards_stay_async():
    guarded = guard(async_inverse_rank)
    assert is_async_callable(guarded)
    assert not is_async_callable(guard(inverse_rank))
    assert asyncio.run(guarded(**{**BATCH, "rank": [1, 2, 4]})) == [1.0, 0.5, 0.25]
    with pytest.raises(RewardError, match=r"reward 'async_inverse_rank' raised TypeError.*first is shown"):
        asyncio.run(guarded(**BATCH))
    assert pickle.loads(pickle.dumps(guarded)).__name__ == "async_inverse_rank"
    with pytest.raises(RewardError, match="returned a coroutine without being declared `async def`"):
        guard(lambda **kwargs: async_inverse_rank(**kwargs))(**BATCH)


def test_deferred_errors_answer_zeros_and_raise_later():
    accelerator = Accelerator(cpu=True)
    deferred = DeferredErrors()
    rewards = [deferred.defer(inverse_rank), deferred.defer(async_inverse_rank), deferred.defer(Callable_([1.0] * 3))]
    assert rewards[2](**BATCH) == [1.0] * 3
    deferred.raise_together(accelerator)
    assert rewards[0](**BATCH) == [0.0] * 3
    assert asyncio.run(rewards[1](**BATCH)) == [0.0] * 3
    with pytest.raises(RewardError, match="reward 'inverse_rank'"):
        deferred.raise_together(accelerator)
    deferred.raise_together(accelerator)  # an error is raised once


def test_raise_together_in_one_process():
    accelerator = Accelerator(cpu=True)
    raise_together(None, accelerator)
    error = ValueError("any kind")
    with pytest.raises(ValueError, match="any kind"):
        raise_together(error, accelerator)


TWO_PROCESSES = """
    import torch
    from accelerate import Accelerator
    from anyo_rl.training.rewards.check import DeferredErrors

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, accelerator.num_processes

    def picky(rank, **kwargs):
        return [1 / r for r in rank]

    deferred = DeferredErrors()
    reward = deferred.defer(picky)
    for step, rank in enumerate([2, 0 if accelerator.process_index == 1 else 2]):
        values = reward(prompts=["p"], completions=["c"], completion_ids=[[1]], rank=[rank])
        gathered = accelerator.gather(torch.tensor(values))  # as TRL does, before anyone may raise
        deferred.raise_together(accelerator)
        print(f"step {step} went on with", gathered.tolist(), flush=True)
"""


@pytest.mark.slow
def test_two_processes_go_on_together_and_stop_together(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started by hand: a launcher would kill the second process when the first one ends.
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 180  # a hang lasts for 30 minutes; a loaded machine is slow to import
    try:
        output = [process.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all("step 0 went on with [0.5, 0.5]" in text for text in output), output
    assert not any("step 1" in text for text in output), output
    assert all(process.returncode not in (0, None) for process in started), output
    assert "reward 'picky' raised ZeroDivisionError" in output[1]
    assert "rank: 0" in output[1]
    assert "stopped because process 1 of 2 failed with RewardError: reward 'picky' raised" in output[0]
