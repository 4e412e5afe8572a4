"""What a console shows: no dictionaries, one line for each validation, nothing from other processes."""

from types import SimpleNamespace

from anyo_rl.training.loop.console import Console


def told(console: Console, main: bool = True, **metrics: float) -> None:
    args = SimpleNamespace(disable_tqdm=False, greater_is_better="ndcg@10" in console.metrics)
    state = SimpleNamespace(is_world_process_zero=main, global_step=3, max_steps=10)
    console.on_train_begin(args, state, None)
    console.on_log(args, state, None, logs={"loss": 0.5, "reward": 0.25, "epoch": 1.0})
    console.on_step_end(args, state, None)
    console.on_evaluate(args, state, None, metrics=metrics)
    console.on_train_end(args, state, None)


def test_a_line_for_each_validation(capfd):
    console = Console("grpo")
    told(console, **{"eval_ndcg@10": 0.25, "eval_hr@10": 0.5})
    told(console, **{"eval_ndcg@10": 0.125, "eval_hr@10": 0.25})
    told(console)  # an evaluation that ranks nothing
    out, err = capfd.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if "validation" in line]
    assert lines == [
        "grpo, update 3 of 10: validation NDCG@10 0.2500, HR@10 0.5000 (best so far)",
        "grpo, update 3 of 10: validation NDCG@10 0.1250, HR@10 0.2500",
    ]
    assert "grpo:  30%" in err
    assert "{" not in out + err


def test_of_losses_the_least_is_best(capfd):
    console = Console("prm", {"loss": "loss"})
    for value in (0.5, 0.75, 0.25):
        told(console, eval_loss=value)
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "validation" in line]
    assert [line.split("validation ")[1] for line in lines] == [
        "loss 0.5000 (best so far)",
        "loss 0.7500",
        "loss 0.2500 (best so far)",
    ]


def test_other_processes_are_silent(capfd):
    told(Console("sft"), main=False, **{"eval_ndcg@10": 0.25, "eval_hr@10": 0.5})
    assert capfd.readouterr() == ("", "")
