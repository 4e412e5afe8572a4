"""What is in the journal survives kills, other writers and full disks."""

import json
import os
from dataclasses import asdict, replace

import pytest

from anyo_rl.llm.journal import Answer, Journal, JournalError, read_answers


def answer_of(number, text="some text", fingerprint="f"):
    return Answer(f"u{number}", number % 3, fingerprint, text, "stop", 3, 4, None, 1)


def test_answers_come_back_as_they_were(tmp_path):
    odd = ["", "two\nlines\r\n\x85\u2028\x00", "Пятьсот 😀", '{"a": "b\\n"}']
    written = [answer_of(number, text) for number, text in enumerate(odd)]
    with Journal(tmp_path / "new" / "folder") as journal:
        for answer in written:
            journal.append(answer)
        assert journal.answers() == {answer.key: answer for answer in written}
    assert len(journal.file.read_bytes().split(b"\n")) == len(odd) + 1
    assert read_answers(tmp_path / "nowhere") == {}


def test_half_a_line_is_dropped_and_cut_off_wherever_it_ends(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.append(answer_of(number))
    whole = journal.file.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    two = {answer.key: answer for answer in map(answer_of, range(2))}
    for end in (*range(last, len(whole), 9), len(whole) - 1):
        journal.file.write_bytes(whole[:end])
        assert read_answers(tmp_path) == two
        with Journal(tmp_path) as again:
            assert again.file == journal.file
            again.append(answer_of(9))
        assert list(read_answers(tmp_path)) == [*two, answer_of(9).key]
    journal.file.write_bytes(whole[:last] + b"\x00\x00\n")  # what a loss of power may leave
    assert read_answers(tmp_path) == two


def test_an_answer_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    with Journal(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append((fd, journal.file.read_bytes())))
        journal.append(answer_of(1))
        assert synced == [(journal._fd, journal.file.read_bytes())]
        assert synced[0][1].endswith(b"}\n")


@pytest.mark.parametrize("line", [b"garbage\n", b"[1]\n", b"null\n", b'{"example_id": "u7"}\n'])
def test_other_lines_are_not_thrown_away(tmp_path, line):
    with Journal(tmp_path) as journal:
        journal.append(answer_of(1))
    journal.file.write_bytes(line + journal.file.read_bytes())
    for start in (lambda: Journal(tmp_path), lambda: read_answers(tmp_path)):
        with pytest.raises(JournalError, match="line 1: expected an answer in JSON"):
            start()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"text": "half \ud83d of one"}, "lone surrogate"),
        ({"finish_reason": "\ud83d"}, "lone surrogate"),
        ({"text": ["steps"]}, "text and finish_reason are list and str"),
        ({"finish_reason": "x" * 101}, "finish_reason has 101 characters"),
        ({"prompt_tokens": 10**400}, "a count of its tokens"),
        ({"completion_tokens": -1}, "a count of its tokens"),
        ({"money": float("inf")}, "money is no amount"),
        ({"sample_index": "0"}, "sample_index or attempts"),
        ({"example_id": 3}, "example_id or fingerprint"),
    ],
)
def test_what_cannot_be_used_is_not_written_and_read_past_where_it_was(tmp_path, caplog, wrong, word):
    with pytest.raises(ValueError, match=word):
        replace(answer_of(1), **wrong)
    with Journal(tmp_path) as journal:
        journal.append(answer_of(2))
    line = json.dumps({**asdict(answer_of(1)), **wrong}).encode() + b"\n"
    journal.file.write_bytes(line + journal.file.read_bytes() + line)
    with Journal(tmp_path) as again:
        again.append(answer_of(1))
        assert list(again.answers()) == [answer_of(2).key, answer_of(1).key]
    assert journal.file.read_bytes().count(line) == 2  # they may have cost money, and are not thrown away
    assert "2 answers can't be used and are asked for again, the first in line 1: " in caplog.text
    assert word in caplog.text


def test_a_line_that_is_nested_too_deep_is_read_past(tmp_path, caplog):
    with Journal(tmp_path) as journal:
        journal.append(answer_of(1))
    journal.file.write_bytes(b'{"text": ' + b"[" * 200_000 + b"\n" + journal.file.read_bytes())
    with Journal(tmp_path) as again:
        assert list(again.answers()) == [answer_of(1).key]
    assert "line 1: it is nested too deep" in caplog.text


def test_a_whole_last_line_of_another_kind_is_not_cut_off(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(answer_of(1))
    row = json.loads(journal.file.read_bytes()) | {"new_field": 1}
    journal.file.write_text(json.dumps(row) + "\n")
    with pytest.raises(JournalError, match="line 1"):
        Journal(tmp_path)
    assert "new_field" in journal.file.read_text()


def test_each_writer_has_a_file_of_its_own_and_takes_up_one_that_is_free(tmp_path):
    with Journal(tmp_path) as first:
        first.append(answer_of(1, "first"))
        with Journal(tmp_path) as second:
            second.append(answer_of(1, "second"))
            second.append(answer_of(2))
            # Half a line of a writer that lives is left to it.
            os.write(first._fd, b'{"example')
            assert [a.text for a in second.answers().values()] == ["first", "some text"]
            with Journal(tmp_path) as third:
                assert len({first.file, second.file, third.file}) == 3
            assert first.file.read_bytes().endswith(b'{"example')
    with Journal(tmp_path) as again:
        assert again.file == first.file
        assert again.file.read_bytes().endswith(b"}\n")


def test_what_a_full_disk_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    real = os.write
    with Journal(tmp_path) as journal:
        journal.append(answer_of(1))
        before = journal.file.read_bytes()

        def full(fd, data):
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return real(fd, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append(answer_of(2))
        monkeypatch.setattr(os, "write", real)
        assert journal.file.read_bytes() == before
        journal.append(answer_of(3))
    assert list(read_answers(tmp_path)) == [answer_of(1).key, answer_of(3).key]
