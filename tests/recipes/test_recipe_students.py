"""A student without a teacher, a teacher's cache, and a student that learns from it, as documented commands."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_student_is_trained_and_distilled_beside_it(launcher, tmp_path):
    data = ("--toy_users", 60, "--toy_categories", 4)
    small = (*data, "--seeds", 0, "--max_epochs", 2, "--dim", 8)
    plain, cache, taught = (tmp_path / name for name in ("student", "cache", "distilled"))
    titles = ("--item_vectors", "tfidf", "--least_events", 3)
    assert "get predicted vectors" in launcher.finish("train_student", *small, *titles, "--output_dir", plain)
    launcher.finish("cache_teacher", *data, "--top_k", 20, "--output_dir", cache)
    flags = (*small, "--teacher_cache", cache, "--labels", 0.3, 0.6, "--beside", plain, "--output_dir", taught)
    output = launcher.finish("distill_student", *flags)
    summary = json.loads((taught / "evaluation.json").read_text())
    assert {"student", "student_distilled", "item_knn"} <= set(summary["stages"])
    assert "student_distilled − student" in output
    assert "Chosen on validation" in output
    assert (taught / "seed-0" / "student" / "student.safetensors").is_file()
