"""A DeepSpeed that keeps its state elsewhere is refused at the start, whatever a later save or load would miss."""

from pathlib import Path

from tests.ranks import start_ranks


def test_each_name_that_is_gone_is_named() -> None:
    ranks = start_ranks(1, Path(__file__).with_name("moved.py"))
    assert ranks.wait() == [0], ranks.said()
    lines = [line.split("|") for line in ranks.said().splitlines() if line.count("|") == 2]
    assert {line[0] for line in lines} == {"1", "2", "3"}
    assert len(lines) == 3 * 7 + 1 + 1 + 7
    for _, name, said in lines:
        if name == "nothing":
            assert said == "all is there"
        else:
            missing = "4 of 20 fp32 weights found" if name == "a weight" else f"engine.{name} is missing"
            assert missing in said
            assert "known good: 0.19.8" in said
