"""What the run of an adapter says."""

import json
from pathlib import Path

from rankwise.report.adapter_run import head_alone
from rankwise.results import plain
from sample_results import change, sample_results


def test_what_the_base_can_do_with_a_head(tmp_path: Path) -> None:
    adapter = tmp_path / "adapters" / "r4-lr0.001-s0"
    adapter.mkdir(parents=True)
    assert head_alone(adapter) is None
    results = sample_results((1, 4))
    (tmp_path / "results.json").write_text(json.dumps(plain(results)))
    assert head_alone(adapter) is None
    change(results.configurations[0], method="head", mean=0.923, interval=(0.913, 0.932))
    (tmp_path / "results.json").write_text(json.dumps(plain(results)))
    assert head_alone(adapter) == (
        "With a head trained over it, it has a test accuracy of 0.923 (95% interval 0.913 to 0.932) in the run."
    )
