"""What weights remember of patients, names to modules, progress."""

import pytest
from pydantic import ValidationError

from pcrl_cli.core.contract import Architecture, Contract, Domain, Patients
from pcrl_cli.core.errors import UsageError
from pcrl_cli.core.learner import Progress
from pcrl_cli.core.names import find
from pcrl_cli.methods import METHODS

NAMES = [f"luna:{i}" for i in range(50)]
DOMAIN = Domain(channels=1, modality="ct", spacing_mm=1.0, intensity={"hu_min": -1000.0}, normalisation="z")
ARCHITECTURE = Architecture(dim=3, encoder="unet3d", width=4, poolings=2)


def test_exactly_the_hashed_patients_are_found():
    patients = Patients.of(NAMES[::3], "salt")
    assert [name for name in NAMES if patients.knows([name])] == NAMES[::3]
    assert not any(patients.knows([name]) for name in ("lits:0", "luna:00", "0"))
    assert not Patients().knows(NAMES)


def test_a_scan_is_known_under_any_patient_and_the_choosers_on_request():
    patients = Patients.of(["luna:a"], "salt", scans=["scan:1"], selected=["luna:b", "scan:2"])
    assert patients.knows(["folder:x", "scan:1"])
    assert not patients.knows(["luna:b", "scan:2"])
    assert patients.knows(["folder:y", "scan:2"], selected_too=True)


def test_joined_weights_know_the_patients_of_both():
    both = Patients.of(["a"], "s", scans=["1"]).joined(Patients.of(["b"], "s", selected=["c"]))
    assert both == Patients.of(["a", "b"], "s", scans=["1"], selected=["c"])


def test_another_salt_gives_other_hashes_and_no_name_is_readable():
    one, other = Patients.of(NAMES, "a"), Patients.of(NAMES, "b")
    assert not set(one.hashes) & set(other.hashes)
    assert len(set(one.hashes)) == len(NAMES)
    assert not any("luna" in h for h in one.hashes)


def test_hashes_do_not_tell_the_order_that_patients_came_in():
    assert Patients.of(NAMES, "a") == Patients.of(reversed(NAMES), "a")


def test_a_contract_survives_its_json():
    contract = Contract(architecture=ARCHITECTURE, domain=DOMAIN, patients=Patients.of(NAMES, "s"), steps=7)
    assert Contract.model_validate_json(contract.model_dump_json()) == contract


def test_a_contract_of_another_schema_is_refused():
    contract = Contract(architecture=ARCHITECTURE, domain=DOMAIN).model_dump()
    with pytest.raises(ValidationError):
        Contract.model_validate(contract | {"schema_": "pcrl.weights/2"})


def test_a_name_leads_to_its_module_and_an_unknown_one_to_the_nearest():
    assert find("method", "pcrlv2", METHODS).__name__ == "pcrl_cli.methods.pcrlv2"
    with pytest.raises(UsageError, match="did you mean pcrlv2"):
        find("method", "pcrl2", METHODS)
    with pytest.raises(UsageError, match=r"the methods are .*pcrlv2"):
        find("method", "xyz", METHODS)


def test_progress_starts_at_0_and_stays_below_1():
    assert [Progress(s, 4).fraction for s in range(4)] == [0, 0.25, 0.5, 0.75]
