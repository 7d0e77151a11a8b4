import importlib
import pickle
import pkgutil

import pytest

import farreach
from farreach import errors
from farreach.errors import FarreachError


def subclasses(kind):
    direct = kind.__subclasses__()
    return sorted(
        {*direct, *(below for one in direct for below in subclasses(one))},
        key=lambda found: found.__qualname__,
    )


for module in pkgutil.iter_modules(farreach.__path__):
    if module.name != "__main__":
        importlib.import_module(f"farreach.{module.name}")
KINDS = [
    kind
    for kind in [FarreachError, *subclasses(FarreachError)]
    if kind.__module__.split(".")[0] in ("farreach", "farreach_workloads")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__qualname__)
def test_every_error_survives_pickling(kind):
    back = pickle.loads(pickle.dumps(kind("x.yaml:7: agent.lr: should be greater than 0")))
    assert type(back) is kind
    assert str(back) == "x.yaml:7: agent.lr: should be greater than 0"
    assert back.args == ("x.yaml:7: agent.lr: should be greater than 0",)
    assert back.exit_code == kind.exit_code


def test_all_errors_of_the_module_are_for_the_user():
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(found) > 1
    assert all(issubclass(kind, FarreachError) for kind in found)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [("FarreachError", 1), ("CheckpointError", 1), ("ConfigError", 2), ("RegistryError", 2)],
)
def test_wrong_input_and_failed_runs_have_different_exit_codes(name, exit_code):
    assert getattr(errors, name).exit_code == exit_code
