"""A memo finds a value under the key it was kept with, and under no other."""

from prefixrl_jax.runtime.memo import Memo, memo_key


def test_a_value_is_found_by_name_and_key_alone(tmp_path):
    path = tmp_path / "new" / "memo.json"
    memo = Memo(path)
    memo.put("a", memo_key("content", [1]), {"x": [1, 2]})
    assert not path.exists()
    memo.save()
    again = Memo(path)
    assert again.get("a", memo_key("content", [1])) == {"x": [1, 2]}
    assert again.get("a", memo_key("content", [2])) is None
    assert again.get("b", memo_key("content", [1])) is None
    again.put("a", "other", 3)
    assert again.get("a", memo_key("content", [1])) is None


def test_a_memo_that_was_changed_is_not_believed(tmp_path):
    path = tmp_path / "memo.json"
    memo = Memo(path)
    memo.put("a", "k", 1)
    memo.save()
    path.write_text(path.read_text(encoding="utf-8").replace('"value": 1', '"value": 2'), "utf-8")
    assert Memo(path).get("a", "k") is None


def test_a_memo_without_news_is_not_written(tmp_path):
    path = tmp_path / "memo.json"
    Memo(path).save()
    assert not path.exists()
    Memo().save()  # nowhere to write to
