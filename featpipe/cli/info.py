"""``featpipe info``."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from featpipe.cli._options import json_option


@click.command("info")
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def command(file: str, as_json: bool) -> None:
    """Say what FILE holds: a feature cache (.h5) or a classifier (.safetensors)."""
    from featpipe.cli._output import print_json

    is_classifier = file.endswith(".safetensors")
    document = _classifier(file) if is_classifier else _cache(file)
    if as_json:
        print_json(document)
    elif is_classifier:
        _print_classifier(document)
    else:
        _print_cache(document)


def _cache(file: str) -> dict[str, Any]:
    from featpipe.cache import FeatureCache
    from featpipe.cli._text import describe_cache

    with FeatureCache.open(file) as cache:
        return describe_cache(cache)


def _classifier(file: str) -> dict[str, Any]:
    from featpipe.classifier import Classifier

    classifier = Classifier.load(file)
    return {
        "path": file,
        "head": classifier.head_name,
        "layer": classifier.layer,
        "classes": list(classifier.classes),
        "multilabel": classifier.multilabel,
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "spec": classifier.spec.to_dict(),
        "result": classifier.result,
    }


def _print_spec(spec: dict[str, Any]) -> None:
    from featpipe.cli._output import say
    from featpipe.decode import Preprocessing

    say(f"backbone      {spec['backbone']}")
    random = "  RANDOM: nothing was learnt" if spec["random_weights"] else ""
    say(f"weights       {spec['weights']}{random}")
    for layer, digest in spec["weights_digests"].items():
        say(f"digest        {digest} (up to {layer})")
    known = spec["preprocessing"]
    described = Preprocessing.from_dict(known).describe() if known else "not known: imported"
    say(f"preprocessing {described}")
    say(f"decoder       {spec['decoder']}")
    say(f"precision     {spec['precision']}, stored as {spec['dtype']}")
    if views := spec.get("views"):
        say(f"views         {views['count']}: {views['transforms']}, seed {views['seed']}")


def _print_cache(document: dict[str, Any]) -> None:
    from featpipe.cli._output import say

    say(f"{document['path']}: {document['rows']} rows, {_bytes(document['size_bytes'])}")
    for name, shape in document["layers"].items():
        pool = document["spec"]["layers"][name]
        say(f"layer         {name} {tuple(shape)}, pool {pool}")
    for title in ("classes", "splits", "suffixes", "status"):
        if document[title]:
            counts = ", ".join(f"{name or 'none'} {n}" for name, n in document[title].items())
            say(f"{title:13} {counts}")
    if document["groups"]:
        say(f"groups        {document['groups']}")
    _print_spec(document["spec"])
    conditions = document["conditions"]
    say(
        f"made          {conditions['finished']}, {conditions['seconds']:.1f} s on "
        f"{conditions['device']}, {conditions['cpu']}, torch {conditions['versions']['torch']}"
    )
    for line in _execution(conditions):
        say(line)
    if document["without_features"]:
        say("without features:")
        for row in document["without_features"]:
            say(f"  {row['id']}: {row['reason']}")


def _execution(conditions: dict[str, Any]) -> Iterator[str]:
    """How the features were computed; files of earlier versions do not say."""
    from featpipe.fidelity import Fidelity
    from featpipe.throughput import describe

    how, speed = conditions.get("execution"), conditions.get("throughput")
    measured = Fidelity.from_dict(conditions.get("fidelity"))
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # made up by someone
        if how is not None:
            yield (
                f"computed by   {how['runtime']} in {how['precision']}, {how['decode']} decoding, "
                f"{how['batch_size']} images a batch"
            )
        if measured is not None:
            yield f"fidelity      {measured}"
        if speed is not None:
            yield f"speed         {describe(speed)}"


def _print_classifier(document: dict[str, Any]) -> None:
    from featpipe.cli._output import say

    say(f"{document['path']}: {document['head']} on {document['layer']}")
    say(f"classes       {', '.join(document['classes'])}")
    _print_spec(document["spec"])
    say(f"temperature   {document['temperature']:.4f}")
    if document["threshold"] is not None:
        say(f"abstains      below a probability of {document['threshold']:.4f}")
    for part, scores in document["result"]["scores"].items():
        low, high = scores["accuracy_interval_95"]
        name = "all labels right" if document["multilabel"] else "accuracy"
        say(
            f"{part:13} {name} {scores['accuracy']:.4f} (95 % {low:.4f} to {high:.4f}), "
            f"{scores['n']} images"
        )


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
