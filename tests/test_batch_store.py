"""A shard's files: whole or noticed, and nothing that was worked out is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.batch import store as module
from backend.batch.store import Store, opened, read_part
from backend.errors import BatchError


def fill(store: Store, *tasks: int) -> list[Path]:
    return [part for task in tasks if (part := store.add(task, f"key {task}", {"n": task})) is not None]


def test_results_come_back(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as store:
        parts = fill(store, 1, 2, 3)
        assert [path.name for path in parts] == ["part-000001.jsonl"]
        assert store.rows == 1
    with opened(tmp_path, 2) as store:
        assert store.done == {1: "key 1", 2: "key 2", 3: "key 3"}
        assert store.waiting == parts
        assert store.rows == 1
        assert [path.name for path in fill(store, 4)] == ["part-000002.jsonl"]
        assert store.results() == {number: {"n": number} for number in (1, 2, 3, 4)}


def test_a_part_is_closed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_SECONDS", -1.0)
    with opened(tmp_path, 50) as store:
        assert len(fill(store, 1)) == 1


@pytest.mark.parametrize("cut", [2, 20, 60, 100, 150])
def test_a_part_that_was_cut_short_is_asked_again(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path, 2) as store:
        [part, other] = fill(store, 1, 2, 3, 4)
    text = part.read_bytes()
    part.write_bytes(text[:-cut])
    assert read_part(part) is None
    with opened(tmp_path, 2) as store:
        assert store.done == {3: "key 3", 4: "key 4"}
        assert store.waiting == [other]
        assert [path.name for path in fill(store, 1, 2)] == ["part-000003.jsonl"]


@pytest.mark.parametrize("change", [b"", b"not a part\n", b'{"tasks":0}\n', b"\xff\xfe"], ids=["empty", "text", "no hash", "bytes"])
def test_what_is_no_part_counts_as_none(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "part-000007.jsonl").write_bytes(change)
    with opened(tmp_path, 1) as store:
        assert not store.done
        assert [path.name for path in fill(store, 1)] == ["part-000008.jsonl"]


@pytest.mark.parametrize("torn", range(2, 43, 7))
def test_of_an_open_part_the_whole_lines_are_kept(tmp_path: Path, torn: int) -> None:
    with opened(tmp_path, 50) as store:
        fill(store, 1, 2, 3)
    path = tmp_path / ".open.jsonl.partial"
    path.write_bytes(path.read_bytes()[:-torn])
    with opened(tmp_path, 3) as store:
        assert set(store.done) == {1, 2}
        [part] = fill(store, 3)
        assert [row["task"] for row in read_part(part) or ()] == [1, 2, 3]


def test_a_kill_between_the_seal_and_the_name_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(tmp_path, 2) as store:
        patch.setattr(module, "publish", kill)
        with pytest.raises(KeyboardInterrupt):
            fill(store, 1, 2)
    with opened(tmp_path, 3) as store:
        assert set(store.done) == {1, 2}
        [part] = fill(store, 3)
        assert [row["task"] for row in read_part(part) or ()] == [1, 2, 3]


def test_the_journal_tells_what_is_pushed_and_what_is_in_doubt(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as store:
        first, second, third = fill(store, 1, 2, 3)
        assert not store.begin_push(first)
        store.end_push(first)
        assert not store.begin_push(second)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"part": "part-0')
    with opened(tmp_path, 1) as store:
        assert store.settled == {1}
        assert store.waiting == [second, third]
        assert store.begin_push(second)
        assert not store.begin_push(third)


def test_another_content_under_a_pushed_name_is_not_pushed(tmp_path: Path) -> None:
    with opened(tmp_path / "a", 1) as store:
        [part] = fill(store, 1)
        store.begin_push(part)
        store.end_push(part)
    with opened(tmp_path / "b", 1) as store:
        [other] = fill(store, 2)
    part.write_bytes(other.read_bytes())
    with opened(tmp_path / "a", 1) as store:
        assert store.waiting == [part]
        assert not store.settled


def test_two_on_one_shard_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path, 1), pytest.raises(BatchError, match="another run works on these tasks"), opened(tmp_path, 1):
        pass


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, row: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(tmp_path, 1) as store:
        monkeypatch.setattr(Store, "_append", full)
        with pytest.raises(BatchError, match="No space left on device"):
            fill(store, 1)
    assert not store.done
