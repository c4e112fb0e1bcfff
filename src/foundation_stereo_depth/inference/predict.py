"""From files to files: pairs are read, predicted in batches, and written as asked."""

import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from foundation_stereo_depth.checkpoint import UnknownScaleWarning
from foundation_stereo_depth.data.pairs import NamedPair, find_pairs
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.inference.outputs import Writer
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.inference.swapped_views import seem_swapped
from foundation_stereo_depth.options.inference import PredictOptions


def predict_files(left: str, right: str | None, checkpoint: Path, options: PredictOptions) -> int:
    """Predicts every pair that the arguments name and writes the results; returns how many pairs.

    Args:
        left: a picture, a folder, a glob or a video; with both eyes side by side where `right` is None.
        right: the same for the right eye.
        checkpoint: the network's file.
        options: all options.

    Raises:
        UserError: the pairs, the network or the output cannot be used as asked.
    """
    if options.output.output is None:
        raise UserError("needs --output (-o), the folder to write to")
    pairs = find_pairs(left, right)
    writer = Writer(options.output)
    there = [name for name in pairs.files if writer.is_done(name)]
    if there:
        print(f"{options.output.output}: {len(there)} of {len(pairs.files)} pairs are there already")
        if len(there) == len(pairs.files):
            return 0
        pairs = pairs.without(there)
    for name in pairs.files:  # rather now than in the middle of a long run
        writer.check_free(name)
    predictor = open_predictor(checkpoint, options)
    print(f"{predictor.description}; {'frames' if pairs.count is None else f'{pairs.count} pairs'} of {left}")
    missing = (pair for pair in _swapped(pairs, options.output.swap) if not writer.is_done(pair.name))
    done, predicting_s = 0, 0.0
    try:
        with tqdm(total=pairs.count, unit="pair", desc="predicting", dynamic_ncols=True, leave=False) as bar:
            for batch in _batches(_watched(missing, predictor, options), options):
                for pair in batch:
                    writer.check_free(pair.name)
                began_s = time.perf_counter()
                predictions = predictor.batch([(pair.left, pair.right) for pair in batch])
                predicting_s += time.perf_counter() - began_s
                for pair, prediction in zip(batch, predictions, strict=True):
                    writer.write(pair.name, pair.left, prediction)
                    done += 1
                    bar.update()
    finally:
        print(
            f"{options.output.output}: {done} pairs written; {1000 * predicting_s / max(done, 1):.1f} ms a pair to "
            "predict"
        )
    return done


def open_predictor(checkpoint: Path, options: PredictOptions) -> Predictor:
    """The predictor that the options ask for; what the user should know of its weights goes to standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnknownScaleWarning)
        predictor = Predictor.from_checkpoint(
            checkpoint,
            device=options.inference.device,
            precision=options.inference.precision,
            backend=options.inference.backend,
            compile=options.inference.compile,
            height=options.network.height,
            width=options.network.width,
        )
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return predictor


def _swapped(pairs: Iterable[NamedPair], swap: bool) -> Iterator[NamedPair]:
    for pair in pairs:
        yield NamedPair(name=pair.name, left=pair.right, right=pair.left) if swap else pair


def _watched(pairs: Iterator[NamedPair], predictor: Predictor, options: PredictOptions) -> Iterator[NamedPair]:
    """The same pairs; the first is looked at for exchanged eyes."""
    first = next(pairs, None)
    if first is None:
        return
    if seem_swapped(predictor, first.left, first.right):
        remedy = "leave --swap out" if options.output.swap else "--swap exchanges them"
        tqdm.write(
            f"warning: {first.name}: left and right seem to be exchanged, the pictures fit better the other way round; "
            f"{remedy}",
            file=sys.stderr,
        )
    yield from chain([first], pairs)


def _batches(pairs: Iterator[NamedPair], options: PredictOptions) -> Iterator[list[NamedPair]]:
    """As many pairs at a time as are predicted together; before one that cannot be read, those that could be."""
    batch: list[NamedPair] = []
    try:
        for pair in pairs:
            batch.append(pair)
            if len(batch) == options.inference.batch_size:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
