"""What is not written down: by the name that it goes under, and what URLs hold."""

from __future__ import annotations

import time

import pytest

from raytrain.config.file import section_of
from raytrain.config.job import Job
from raytrain.config.masking import check_whole, is_secret, masked, masked_command, masked_text, secrets_in
from raytrain.errors import ConfigError, DataError, without_credentials


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_password", "passwd", "PASSWORD", "clientSecret", "secret", "api_key", "apiKey", "apikey"),
        *("HF_TOKEN", "token", "access-token", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "private_key"),
        *("credentials", "aws.credentials", "APIKey", "WANDB_API_KEY", "storage_account_key", "passphrase"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("tokens", "max_tokens", "token_dim", "tokenizer", "num_tokens_per_batch", "key", "key_dim", "keyboard"),
        *("pad_token", "eos_token", "class_token", "maskToken"),
        *("secretary", "compass", "passes", "bypass", "embed_dim", "class_tokens", "author", "", "123", "monkey"),
    ],
)
def test_other_names(name):
    assert not is_secret(name)


def test_a_job_is_written_down_without_them():
    job = {
        "model": {"options": {"api_key": "s1", "dim": 16, "class_token": False, "hub_token": 101}},
        "data": {"train": {"path": "s3://AKIA:s2@bucket/train?region=x", "credentials": {"user": "s3", "n": [7]}}},
        "stages": [{"own:fetch": {"password": 1234, "url": "https://x.org/a?token=s4&size=3"}}],
        "empty": {"password": "", "secret": None},
    }
    assert masked(job) == {
        "model": {"options": {"api_key": "***", "dim": 16, "class_token": False, "hub_token": 101}},
        "data": {
            "train": {
                "path": "s3://***@bucket/train?region=x",
                "credentials": {"user": "***", "n": ["***"]},
            }
        },
        "stages": [{"own:fetch": {"password": "***", "url": "https://x.org/a?token=***&size=3"}}],
        "empty": {"password": "", "secret": None},
    }
    assert sorted(secrets_in(job)) == [
        "data.train.credentials.n.0",
        "data.train.credentials.user",
        "data.train.path",
        "model.options.api_key",
        "stages.0.own:fetch.password",
        "stages.0.own:fetch.url",
    ]


def test_a_command_line_is_written_down_without_them():
    given = ["raytrain", "train", "job.yaml", "--set", "model.options.api_key=s1", "--set", "training.epochs=3"]
    given += ["--password", "s2", "--set", "model.options={hf_token: 's 3', dim: 4}", "s3://a:s4@b/c"]
    given += ["--token-file", "f", "--set", "model.options.secret={a: 1}"]
    assert masked_command(given) == [
        *("raytrain", "train", "job.yaml", "--set", "model.options.api_key=***", "--set", "training.epochs=3"),
        *("--password", "***", "--set", "model.options={hf_token: ***, dim: 4}", "s3://***@b/c"),
        *("--token-file", "f", "--set", "model.options.secret=***"),
    ]


def test_text_of_any_kind():
    assert masked_text('{"secret": "a, b", "lr": 0.1}') == '{"secret": ***, "lr": 0.1}'
    assert masked_text("ValueError: no user: api_key=YWJj== twice, password: a:b=c") == (
        "ValueError: no user: api_key=*** twice, password: ***"
    )
    signed = "https://b.s3.amazonaws.com/x?X-Amz-Credential=AKIA%2F1&X-Amz-Date=2&X-Amz-Signature=abc#top"
    assert masked_text(signed) == (
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***#top"
    )
    assert masked_text("max_tokens=16 of s3://bucket/a@b/c") == "max_tokens=16 of s3://bucket/a@b/c"


def test_errors_show_no_credentials():
    error = DataError("cannot list s3://AKIA:wJalr@bucket/x: 403 of http://h/p?sig=abc&v=1")
    assert str(error) == error.told() == "cannot list s3://***@bucket/x: 403 of http://h/p?sig=***&v=1"
    assert repr(str(ConfigError("plain"))) == "'plain'"


@pytest.mark.parametrize(
    "override",
    ["model.options.api_key", "model.options.api_key={s1", "name.api_key=s1"],
)
def test_what_is_wrong_about_a_job_is_said_without_them(job_file, override):
    with pytest.raises(ConfigError) as caught:
        Job.from_yaml(job_file(), [override])
    assert "s1" not in str(caught.value)


def test_a_value_of_the_wrong_kind_is_not_shown_where_it_is_a_secret(job_tree):
    job_tree["sagemaker"] = {"role": "x", "environment": {"EPOCHS": 30}}
    with pytest.raises(ConfigError, match=r"sagemaker.environment.EPOCHS must be text \(given: 30\)"):
        section_of(Job, job_tree, "job.yaml")
    job_tree["sagemaker"]["environment"] = {"DB_PASSWORD": 1234567}
    with pytest.raises(ConfigError, match=r"DB_PASSWORD must be text \(given: '\*\*\*'\)"):
        section_of(Job, job_tree, "job.yaml")


def test_a_job_that_lost_a_secret_is_not_used_as_if_it_had_it():
    check_whole({"model": {"options": {"dim": 3}}}, "record.json")
    with pytest.raises(ConfigError, match="^record.json does not have model.options.api_key, which looked"):
        check_whole(masked({"model": {"options": {"api_key": "s"}}}), "record.json")
    with pytest.raises(ConfigError, match=r"does not have data.train.path, which"):
        check_whole(masked({"data": {"train": {"path": "s3://a:b@c/d"}}}), "record.json")


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, "a1" * 50_000, "a." * 50_000 + "=", "a" + " " * 100_000, "://" + "x" * 100_000, "://" * 50_000],
)
def test_a_text_as_long_as_a_book_is_looked_through_once(text):
    began = time.process_time()
    assert masked_text(text) == text == without_credentials(text)
    assert str(ConfigError(text))
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["1password=", "--password=", "x.db-password: ", "?a=1 secret="])
def test_a_name_is_looked_at_as_a_whole(text):
    assert masked_text(f"{text}hunter2") == f"{text}***"
