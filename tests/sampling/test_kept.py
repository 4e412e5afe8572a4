import dataclasses

from anyo_rl.run.files import write_table
from anyo_rl.sampling.kept import KeptSampler
from anyo_rl.sampling.paths import SampledPath, paths_table
from anyo_rl.sampling.protocol import Sample, Sampling


class Asked:
    """Writes the number of the call, and remembers whom it was asked for."""

    def __init__(self):
        self.keys = []

    def sample(self, contexts_B, sampling=Sampling(), *, keys_B=None):
        self.keys.append(keys_B)
        return [[Sample((len(self.keys),), None, "stop")] * sampling.n for _ in contexts_B]


def test_kept_paths_are_given_and_the_rest_is_sampled(tmp_path):
    path = SampledPath("a", 1, policy="sft", token_ids=[5, 6], token_log_probs=[-0.5, -1.0], finish_reason="stop")
    first = dataclasses.replace(path, sample_index=0, token_ids=[4], token_log_probs=None, finish_reason="length")
    short = dataclasses.replace(first, example_id="b")
    write_table(paths_table([path, first, short]), tmp_path / "paths.parquet")
    sampler = Asked()
    kept = KeptSampler.read(tmp_path / "paths.parquet", sampler)
    found = kept.sample([[1], [2], [3]], Sampling(n=2), keys_B=["a", "b", "c"])
    assert found[0] == [Sample((4,), None, "length"), Sample((5, 6), (-0.5, -1.0), "stop")]
    assert found[1] == found[2] == [Sample((1,), None, "stop")] * 2
    assert sampler.keys == [["b", "c"]]  # of b one path of two was kept
    assert kept.sample([[1]], Sampling(n=2), keys_B=["a"]) == found[:1]
    assert len(sampler.keys) == 1
    assert KeptSampler.read(tmp_path / "nothing", sampler).sample([[1]]) == [[Sample((2,), None, "stop")]]
