"""FSDP2 on two processes of the CPU: each runs a different number of forwards while the weights are gathered."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

PROGRAM = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
    from anyo_rl.training.loop.weights import unsharded

    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    model = make_tiny_teacher(train_tokenizer(["a b c"], 300), hidden_size=16, n_layers=2, n_heads=2).eval()
    ids = torch.tensor([[5, 6, 7]])
    expected = model.model(ids).last_hidden_state.detach()
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(ids)
    for n_forwards in (1 + 3 * rank, 4 - 3 * rank):
        with torch.no_grad(), unsharded(model):
            for _ in range(n_forwards):
                torch.testing.assert_close(model.model(ids).last_hidden_state, expected)
            assert not isinstance(model.lm_head.weight, DTensor)
        assert isinstance(model.lm_head.weight, DTensor)
        model(ids, labels=ids).loss.backward()
    dist.barrier()
    dist.destroy_process_group()
    """
)


def test_processes_need_not_run_as_many_forwards(tmp_path, repo_root):
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")],
            cwd=repo_root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
