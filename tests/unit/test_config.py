"""Settings: where a value comes from, and what is said of a wrong one."""

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from dlzoo.config import FIELDS, FinetuneConfig, choices, form, resolve, template, to_toml
from dlzoo.errors import UsageError
from dlzoo.transfer.plan import Plan, make_plan
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def toml(tmp_path):
    """Give a function that writes a configuration file and returns its path."""

    def write(text):
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(*args, **kwargs):
    """Return the lines of the error that `resolve` ends in."""
    with pytest.raises(UsageError) as caught:
        resolve(*args, **kwargs)
    assert (caught.value.id, caught.value.exit_code) == ("config.invalid", 2)
    return caught.value.message.splitlines()


def test_a_value_comes_from_the_first_source_that_has_it(toml):
    path = toml("epochs = 4\nseed = 4\nl1 = 0.4\nl2 = 0.4\n")
    env = {f"DLZOO_{key}": "5" for key in ("EPOCHS", "SEED", "L1", "L2", "PATIENCE")}
    found = resolve({"epochs": "2"}, ["epochs=3", "seed=3"], path, env)
    config = found.config
    assert (config.epochs, config.seed, config.l1, config.patience) == (2, 3, 0.4, 5)
    origin = [found.origin[key] for key in ("epochs", "seed", "l1", "patience", "lr")]
    assert origin == ["--epochs", "--set seed", f"{path}:3", "DLZOO_PATIENCE", "default"]


def test_texts_become_typed_values():
    config = resolve(
        {"lr": "1e-3", "batch": "auto", "ignore_class": ("a,b", "c"), "train_bn": "yes"},
        ["label-smoothing=0.1", "export=savedmodel", "taps=C4,C5", "name=x"],
    ).config
    assert (config.lr, config.batch, config.label_smoothing) == (0.001, "auto", 0.1)
    assert (config.ignore_class, config.train_bn) == (["a,b", "c"], True)
    assert (config.export, config.taps) == (["savedmodel"], ["C4", "C5"])


def test_python_values_are_taken_as_they_are(tmp_path):
    config = resolve({"out": tmp_path, "resume": True, "flip": False, "name": None}).config
    assert (config.out, config.resume, config.flip) == (str(tmp_path), "auto", "off")


def test_every_problem_is_told_at_once_with_its_line(toml):
    path = toml('# mine\nepocs = 3\n\nlr = "fast"\naugment = "strng"\n[[stages]]\nx = 1\n')
    lines = problems({"seed": "-1"}, ["foo", "dropuot=1"], path, {"DLZOO_BATCH": "many"})
    assert lines[0] == "7 problems"
    text = "\n".join(lines)
    assert f"{path}:2: unknown setting 'epocs'; did you mean 'epochs'?" in text
    assert f"{path}:4: lr = 'fast': should be 'auto' or a valid number" in text
    assert f"{path}:5: augment = 'strng': should be " in text
    assert "did you mean 'strong'?" in text
    assert "--seed: seed = '-1': should be greater than or equal to 0" in text
    assert "--set foo: should be key=value" in text
    assert "--set dropuot: unknown setting 'dropuot'; did you mean 'dropout'?" in text
    assert "DLZOO_BATCH: batch = 'many': should be 'auto' or a valid integer" in text


@pytest.mark.parametrize(
    "line", ['epochs = "5"', 'train_bn = "yes"', "lr = true", "epochs = 1.5", "weights = 3"]
)
def test_a_toml_value_of_the_wrong_type_is_refused(toml, line):
    assert problems(config_file=toml(line))[0].startswith(str(toml(line)) + ":1: ")


@pytest.mark.parametrize("lr", ["__import__('os')", "1/2", "nan", "inf", "0", "-1", "", "1,5"])
def test_values_are_parsed_and_not_evaluated(lr):
    assert problems({"lr": lr}) == [problems({"lr": lr})[0]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"val_split": 0.5, "test_split": 0.5}, "nothing to train on"),
        ({"quiet": True, "verbose": True}, "exclude each other"),
        ({"name": "../x"}, "--name"),
        ({"name": ".."}, "no names"),
        ({"stages": "head:x"}, "should be auto|head:N"),
        ({"device": "tpu"}, "should be DEVICE"),
        ({"fail_under": "90"}, "less than or equal to 1"),
        ({"crop": "0"}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, said):
    assert said in problems(flags)[0]


def test_two_sources_are_judged_together(toml):
    assert resolve({"test_split": "0"}, config_file=toml("val_split = 0.95")).config.val_split
    assert "nothing to train on" in problems({"test_split": "0.1"}, ["val_split=0.9"])[0]


@pytest.mark.parametrize(
    ("text", "said"), [(b"lr = = 1", "line 1"), (b"lr = 1\nl1 = 2 2", "line 2"), (b"\xff", "UTF-8")]
)
def test_a_file_that_is_not_toml_says_where(tmp_path, text, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    assert said in problems(config_file=path)[0]


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError) as caught:
        resolve(config_file=tmp_path / "no.toml")
    assert (caught.value.id, caught.value.exit_code) == ("config.not-found", 2)


def test_a_format_that_cannot_be_written_is_found_before_training():
    with pytest.raises(UsageError, match="savedmodel") as caught:
        resolve({"export": "savedmodle"})
    assert (caught.value.id, caught.value.exit_code) == ("export.format", 2)
    with pytest.raises(UsageError, match=r"export\.quantize"):
        resolve({"export": "savedmodel", "quantize": "int8"})
    assert resolve({"export": "keras,tflite", "quantize": "fp16"}).config.quantize == "fp16"


def test_other_variables_of_dlzoo_are_no_settings():
    assert resolve(env={"DLZOO_HOME": "/x", "DLZOO_EPOCHS": "", "EPOCHS": "3"}).config == (
        FinetuneConfig()
    )


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 1000) | st.just("auto"),
            "lr": st.floats(1e-9, 10) | st.just("auto"),
            "l2": st.floats(0, 1),
            "augment": st.sampled_from(choices("augment")),
            "train_bn": st.booleans(),
            "ignore_class": st.lists(st.text("ab,\"'\\\n\u00e9\U0001f339")),
            "data": st.text("a\\/ \t\u00e9\"'"),
            "taps": st.lists(st.sampled_from(["C4", "C5"])),
        },
    )
)
def test_a_written_configuration_is_read_back_equal(tmp_path_factory, values):
    config = FinetuneConfig(**values)
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    found = resolve(config_file=path)
    assert found.config == config
    assert to_toml(found.config) == to_toml(config)


def test_what_is_of_one_call_is_not_written():
    config = FinetuneConfig(name="x", resume="auto", dry_run=True, offline=True, quiet=True)
    assert to_toml(config) == to_toml(FinetuneConfig())


def test_the_plan_of_a_run_goes_back_in_as_configuration(toml):
    plan = replace(make_plan("best", overrides={"seed": 3}), size=224)
    config = resolve(config_file=toml(tomli_w.dumps(plan.to_dict()))).config
    assert Plan.from_dict({**plan.to_dict(), "stages": config.stages}) == plan
    assert (config.taps, config.seed) == (list(plan.taps), 3)


def test_the_template_explains_every_setting_and_holds_the_defaults(toml):
    commented = [line for line in template().splitlines() if " = " in line]
    assert resolve(config_file=toml(template())).config == FinetuneConfig()
    values = tomllib.loads("\n".join(line.removeprefix("# ") for line in commented))
    assert resolve(config_file=toml(tomli_w.dumps(values))).config == FinetuneConfig(
        data="flowers", split_file="split.csv", fail_under=0.9, time=600, teacher="runs/best-1"
    )
    of_a_call = {"name", "report", "resume", "dry_run", "offline", "quiet", "verbose", "log_format"}
    assert set(FIELDS) - set(values) == of_a_call


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (30, 30)]
)
def test_a_time_has_a_unit(text, seconds):
    assert resolve({"time": text}).config.time == seconds


@pytest.mark.parametrize("text", ["soon", "1..5m", "-3m", "0"])
def test_what_is_no_time_is_refused(text):
    assert problems({"time": text})


def test_the_help_of_a_field_shows_what_a_value_looks_like():
    assert form("epochs") == "auto|INT"
    assert form("augment") == "auto|none|light|medium|strong"
    assert all(field.description for field in FIELDS.values())
