"""Bad input of the classification scripts: one clear message each, and nothing half-done."""

import pytest
from classification_scripts import common, start

from minmax.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--night.exposure", 0.5, 0.2], "--night.exposure 0.5 0.2: expected two numbers"),
        (["--night.source", "learned"], "needs --darkener"),
        (["--darkener", "some.pt"], "no checkpoint at"),
        (["--checkpoint", "some.pt"], "no checkpoint at"),
        (["--data", "nowhere"], "no data at "),
        (["--data", "ANOTHER"], "no folder .*train; expected .*<Class>.*found training"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(more, message, data, checkpoint, tmp_path):
    (tmp_path / "another" / "training").mkdir(parents=True)
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    with pytest.raises(UsageError, match=message):
        start("train", *flags, *(tmp_path / "another" if flag == "ANOTHER" else flag for flag in more))
    assert not (tmp_path / "classification").exists(), "something was written"
