"""What a stack file means, and what people are told about one that is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.clouds import Market
from infra.paths import repository_root
from infra.stack import Device, json_schema, load, parse, resolve, with_model
from infra.stack.description import DescriptionError

SHIPPED = sorted((repository_root() / "stacks").glob("*.yaml"))
GOOD = """\
name: mine
model: tiny
cloud: local
router:
  edge: {port: 9000}
pools:
  interactive: {machines: 2, first_port: 9100}
  batch:
    machines: 1
    market: spot
    first_port: 9200
"""


def complaint(text: str) -> str:
    with pytest.raises(DescriptionError) as caught:
        parse(text, "stacks/x.yaml", Path("/stacks"))
    return str(caught.value)


def test_a_file_is_read_with_its_defaults() -> None:
    description = parse(GOOD, "stacks/x.yaml", Path("/stacks"))
    assert description.router.admin.port == 8081
    assert description.pools["interactive"].market is Market.ON_DEMAND
    assert description.pools["batch"].market is Market.SPOT
    assert description.pools["batch"].device is Device.AUTO


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_stack_loads_by_its_name_and_fits_the_published_schema(file: Path) -> None:
    assert load(file.stem).name == file.stem
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(json_schema()))


def test_the_published_schema_is_the_codes_own() -> None:
    published = repository_root() / "docs" / "stack.schema.json"
    assert published.read_text() == json_schema(), "run `make schema`"


def test_the_local_stack_is_two_interactive_workers_and_a_batch_one_on_the_fixed_ports() -> None:
    local = load("local")
    assert {name: (pool.machines, pool.market) for name, pool in local.pools.items()} == {
        "interactive": (2, Market.ON_DEMAND),
        "batch": (1, Market.SPOT),
    }
    assert (local.router.edge.port, local.router.admin.port) == (8080, 8081)


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("machines: 1", "machines: -1", 9, "pools.batch.machines: should be greater than or equal to 0, got -1"),
        ("machines: 1", "machines: one", 9, "pools.batch.machines: should be a valid integer, got 'one'"),
        ("machines: 1", "machines: true", 9, "pools.batch.machines: should be a valid integer, got True"),
        ("    machines: 1\n", "", 8, "pools.batch.machines: is missing"),
        ("market: spot", "market: x", 10, "pools.batch.market: should be 'on_demand' or 'spot', got 'x'"),
        ("market: spot", "markt: spot", 10, "pools.batch.markt: there is no such setting; did you mean `market`?"),
        ("name: mine", "name: Mine", 1, "name: should match pattern '^[a-z][a-z0-9-]{0,31}$', got 'Mine'"),
        ("model: tiny", "model: '${A/b'", 2, "model: should hold references written as ${NAME}, got '${A/b'"),
        ("{port: 9000}", "{port: 90000}", 5, "router.edge.port: should be less than or equal to 65535, got 90000"),
        ("{port: 9000}", "{host: a b}", 5, "router.edge.host: should match pattern '^[A-Za-z0-9.:-]+$', got 'a b'"),
        ("  batch:", "  Batch:", 8, "pools.Batch: should match pattern '^[a-z][a-z0-9-]{0,31}$', got 'Batch'"),
        ("cloud: local", "cloud: moon", 3, "cloud: should be 'local', 'spheron', 'runpod' or 'hosts', got 'moon'"),
    ],
)
def test_what_is_wrong_is_named_with_its_setting_its_value_and_its_line(
    before: str, after: str, line: int, said: str
) -> None:
    assert before in GOOD
    assert complaint(GOOD.replace(before, after)) == f"{said}, in stacks/x.yaml line {line}"


def test_a_tier_that_the_reference_engine_does_not_have_is_refused_before_anything_is_rented() -> None:
    tiered = GOOD.replace("machines: 1\n", "machines: 1\n    tier: int8\n")
    assert parse(tiered, "stacks/x.yaml", Path()).pools["batch"].tier == "int8"
    said = complaint(tiered + "engine: reference\n")
    assert said == (
        "pools.batch.tier: int8 is the fast engine's; should be `exact` with `engine: reference`, "
        "in stacks/x.yaml line 10"
    )


def test_weights_that_are_neither_tiny_nor_a_repository_nor_a_folder_are_refused() -> None:
    assert "model: should be `tiny`, a repository (owner/name) or a folder" in complaint(GOOD.replace("tiny", "foo"))


def test_the_admin_app_is_never_public() -> None:
    said = complaint(GOOD.replace("  edge:", "  admin: {host: 0.0.0.0}\n  edge:"))
    assert "router.admin.host: should be a loopback address" in said


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert len(complaint(GOOD.replace("tiny", "foo").replace("spot", "stop")).splitlines()) == 2


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    said = complaint(GOOD + "  batch: {machines: 5, first_port: 9300}\n")
    assert said == "pools.batch: given twice, in stacks/x.yaml lines 8 and 12; keep one of them"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_holds_no_settings_is_refused(text: str) -> None:
    assert "stacks/x.yaml: should be settings" in complaint(text)


@pytest.mark.parametrize("text", ["a: [1, 2", "a: *nobody", "a: \x00", "a: {? [1] : 2}"])
def test_bad_yaml_is_said_to_be_bad_yaml(text: str) -> None:
    assert "not YAML" in complaint(text)


def test_yaml_that_contains_itself_is_refused() -> None:
    assert "contains itself" in complaint("name: &a [*a]")


def test_a_port_that_two_things_want_is_refused_before_anything_is_started() -> None:
    said = complaint(GOOD.replace("first_port: 9200", "first_port: 9101"))
    assert said == (
        "pools.batch.first_port: port 9101 is already taken by pools.interactive.first_port, in stacks/x.yaml line 11"
    )


def test_a_pool_whose_last_port_would_not_exist_is_refused() -> None:
    assert "pools.interactive.first_port: leaves no room" in complaint(GOOD.replace("9100", "65535"))


def test_a_relative_folder_of_weights_lies_beside_the_stack_file() -> None:
    described = parse(GOOD.replace("tiny", "./weights"), "stacks/x.yaml", Path("/somewhere/stacks"))
    assert described.model == "/somewhere/stacks/weights"


def test_a_model_on_the_command_line_overrides_the_files_and_is_relative_to_where_one_stands() -> None:
    described = parse(GOOD, "stacks/x.yaml", Path("/stacks"))
    assert with_model(described, "../weights", Path("/home/me")).model == "/home/weights"
    assert with_model(described, "owner/name", Path("/home/me")).model == "owner/name"
    assert described.model == "tiny"


def test_a_model_on_the_command_line_that_is_none_is_refused() -> None:
    with pytest.raises(DescriptionError, match=r"MODEL=nonsense: .*repository"):
        with_model(parse(GOOD, "x", Path("/")), "nonsense", Path("/"))


def test_a_reference_stays_one_until_it_is_resolved() -> None:
    described = parse(GOOD.replace("tiny", "${WEIGHTS}/nf4"), "stacks/x.yaml", Path("/stacks"))
    assert described.model == "${WEIGHTS}/nf4"
    assert resolve(described.model, {"WEIGHTS": "/disk"}, "model") == "/disk/nf4"


def test_a_reference_to_nothing_names_the_setting_and_the_variable() -> None:
    with pytest.raises(DescriptionError, match=r"model: \$\{WEIGHTS\} refers to the environment, where WEIGHTS is not"):
        resolve("${WEIGHTS}/nf4", {"WEIGHTS": ""}, "model")


@given(st.text(st.characters(exclude_characters="$")), st.dictionaries(st.text(), st.text()))
def test_a_text_without_references_resolves_to_itself(text: str, environ: dict[str, str]) -> None:
    assert resolve(text, environ, "model") == text


def test_a_stack_is_loaded_from_any_path(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(GOOD)
    assert load(str(tmp_path / "other.yaml")).name == "mine"


def test_a_stack_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    (tmp_path / "known.yaml").write_text(GOOD)
    with pytest.raises(DescriptionError, match="the stacks here are: known"):
        load("unknown", tmp_path)


def test_a_copied_stack_that_kept_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(GOOD)
    with pytest.raises(DescriptionError, match="says `name: mine`; it should say `name: copy`"):
        load("copy", tmp_path)


BUCKET = """
  s3:
    bucket: images
    endpoint: https://s3.example
    access_key_id: ${S3_KEY}
    secret_access_key: %s
"""


def with_bucket(secret: str) -> str:
    return GOOD.replace("  edge: {port: 9000}", "  edge: {port: 9000}" + (BUCKET % secret).rstrip())


def test_a_buckets_key_is_a_reference_and_stays_one() -> None:
    description = parse(with_bucket("${S3_SECRET}"), "stacks/x.yaml", Path("/stacks"))
    assert description.router.s3
    assert (description.router.s3.access_key_id, description.router.s3.secret_access_key) == (
        "${S3_KEY}",
        "${S3_SECRET}",
    )


def test_a_secret_in_the_file_is_refused_and_not_shown() -> None:
    said = complaint(with_bucket("hunter2hunter2"))
    assert said.startswith("router.s3.secret_access_key: should be a reference to the environment, ${NAME}")
    assert "hunter2" not in said


def test_webhooks_exceptions_are_networks() -> None:
    given = GOOD.replace("  edge: {port: 9000}", "  webhook_allow: [10.0.0.0/8, 127.0.0.1]")
    assert parse(given, "stacks/x.yaml", Path("/stacks")).router.webhook_allow == ("10.0.0.0/8", "127.0.0.1/32")
    said = complaint(given.replace("127.0.0.1", "10.0.0.1/8"))
    assert said == (
        "router.webhook_allow.1: should be a network such as 10.0.0.0/8, or an address, got '10.0.0.1/8', "
        "in stacks/x.yaml line 5"
    )


def test_half_a_key_is_no_key() -> None:
    said = complaint(with_bucket("x").replace("    secret_access_key: x\n", ""))
    assert said == (
        "router.s3: should have both access_key_id and secret_access_key, or neither, got "
        "{'bucket': 'images', 'endpoint': 'https://s3.example', 'acce…, in stacks/x.yaml line 6"
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("state: ftp://x", r"state: should be a URL: file:///folder"),
        ("state: s3://key:sesame@bucket", r"state: should hold no credentials"),
        ("state: file://folder", r"state: should be file:// and an absolute path"),
        ("router: {edge: {tls: {certificate: ./a.pem}}}", r"should have certificate and key, or else a domain"),
        ("router: {edge: {tls: {domain: a.example.com}}}", r"should say `accept_terms: true`"),
        ("router: {edge: {tls: {domain: a.example.com, accept_terms: true, plain_port: 8080}}}", r"already taken"),
    ],
)
def test_where_the_state_goes_and_how_the_edge_proves_itself_is_checked(setting: str, said: str) -> None:
    text = GOOD.replace("router:\n  edge: {port: 9000}\n", "") + setting
    assert re.search(said, complaint(text)), complaint(text)
    assert "sesame" not in complaint(text)


def test_certbot_answers_on_port_80_and_a_certificate_of_ones_own_needs_no_plain_port() -> None:
    text = GOOD.replace("edge: {port: 9000}", "edge: {port: 9000, tls: {TLS}}")
    own = parse(text.replace("TLS", "certificate: ./a.pem, key: ./a.key"), "x", Path("/stacks")).router.edge.tls
    got = parse(text.replace("TLS", "domain: a.example.com, accept_terms: true"), "x", Path("/stacks")).router.edge.tls
    assert own
    assert got
    assert (own.certificate, own.plain, got.plain) == ("/stacks/a.pem", None, 80)
