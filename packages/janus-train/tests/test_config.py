from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_train.config import (
    Config,
    config_schema,
    file_and_settings,
    known_keys,
    load_config,
    save_config,
    with_data_files,
)
from janus_train.data.load import load_data
from janus_train.failure import UserError


def test_the_file_gives_way_to_the_command_line(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {lr: 0.5, clip: 2}\nrun: {seed: 3}\n")
    config = load_config(path, ["optim.lr=1e-3", "data.train=[a.xyz, b.xyz]"])
    assert (config.optim.lr, config.optim.clip, config.run.seed) == (1e-3, 2.0, 3)
    assert [source.path for source in config.data.train] == [Path("a.xyz"), Path("b.xyz")]


def test_what_is_saved_is_read_back_the_same(tmp_path: Path):
    config = load_config(None, ["model.preset=micro", "model.width=32", "run.dir=here", "data.train=x.extxyz"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.model.changes == {"width": 32}


def test_every_default_is_valid_and_every_key_is_in_the_schema():
    assert Config() == load_config(None)
    assert len(known_keys()) == len(set(known_keys()))
    assert set(config_schema()["properties"]) == {key.split(".")[0] for key in known_keys()}


@given(st.sampled_from(known_keys()), st.integers(0, 10_000))
def test_a_mistyped_key_names_a_key_that_exists(key: str, seed: int):
    section, _, name = key.rpartition(".")
    place = seed % len(name)
    wrong = f"{section}.{name[:place]}{name[place + 1 :]}"
    if wrong in known_keys() or section == "model" or wrong.endswith("."):
        return
    with pytest.raises(UserError, match="unknown key"):
        load_config(None, [f"{wrong}=1"])


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 4), (0.5, 20)])
def test_whole_groups_are_set_aside_where_nothing_is_marked(fraction: float, count: int, tmp_path: Path):
    import numpy as np
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for number in range(80):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7 + 0.001 * number]])
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
        atoms.info["group"] = f"g{number // 2}"
        frames.append(atoms)
    write(tmp_path / "h2.extxyz", frames, format="extxyz")
    settings = [f"data.train={tmp_path / 'h2.extxyz'}", f"data.val_fraction={fraction}", "loss.stress=0"]
    sets = [load_data(load_config(None, [*settings, f"run.seed={seed}"])) for seed in (0, 0, 1)]
    for data in sets:
        assert len({frame.group for frame in data.val}) == count
        assert not {frame.group for frame in data.val} & {frame.group for frame in data.train}
        assert len(data.train) + len(data.val) == 80
    groups = [sorted({frame.group for frame in data.val}) for data in sets]
    assert groups[0] == groups[1] != groups[2]


def test_validation_frames_may_come_from_a_file_of_their_own(tmp_path: Path):
    from importlib.resources import files

    import ase.io

    bundled = ase.io.read(str(files("janus_train.data") / "bundled.extxyz.gz"), ":")
    metals = [atoms for atoms in bundled if atoms.info["task"] == "metals"]
    ase.io.write(tmp_path / "train.extxyz", metals[:60], format="extxyz")
    ase.io.write(tmp_path / "val.extxyz", metals[:5], format="extxyz")
    data = load_data(
        load_config(None, [f"data.train={tmp_path / 'train.extxyz'}", f"data.val={tmp_path / 'val.extxyz'}"])
    )
    assert len(data.val) == 5
    assert all(frame.split == "train" for frame in data.train)


def test_words_of_a_command_are_a_file_settings_and_data_however_their_paths_are_written():
    words = with_data_files(["./a.extxyz", "my.yaml", "loss.stress=0", "old-data/"])
    path, settings = file_and_settings(words)
    assert path == Path("my.yaml")
    assert settings == ["loss.stress=0", 'data.train=["./a.extxyz", "old-data/"]']
    assert file_and_settings(with_data_files([])) == (None, [])
    with pytest.raises(UserError, match=r"one configuration file at most, got a.yaml, b.yaml"):
        file_and_settings(["a.yaml", "b.yaml"])
