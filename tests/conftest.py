"""Settings that every test runs under: one thread, no network, no trace of the user's own caches and configs.

They are set before torch and transformers are imported, since both read them once.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    POLARS_MAX_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MPLBACKEND="Agg",
)
# A home of its own for each test process: parallel tests don't meet in a cache, and `accelerate launch` doesn't find
# the user's default config.
_HF_HOME = tempfile.mkdtemp(prefix="anyo_rl_tests_")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ["HF_HOME"] = _HF_HOME

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
# Deadlines would measure how busy the machine is.
settings.register_profile("anyo_rl", deadline=None, database=None)
settings.load_profile("anyo_rl")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that ANYO_RL_DATA names; the test is skipped where there is none."""
    folder = os.environ.get("ANYO_RL_DATA")
    if not folder:
        pytest.skip("ANYO_RL_DATA is not set: it names the folder that holds ml-100k/ and office/")
    if not Path(folder).is_dir():
        pytest.fail(f"ANYO_RL_DATA names {folder}, which is not a folder")
    return Path(folder)
