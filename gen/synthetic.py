"""Random checkpoints: a decoder of any configuration without a trained model, for tests, area studies and examples."""

import numpy as np

from intaglio.gen.checkpoint import Checkpoint, Layer, Ternary

__all__ = ["random_checkpoint"]


def random_checkpoint(config, seed=0, zeros=1 / 3):
    """Draw a checkpoint whose activations keep their magnitude from layer to layer.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Equal seeds give equal checkpoints.
    zeros : float
        Expected share of zero weights, in 0..1; -1 and 1 are equally likely.

    Returns
    -------
    Checkpoint, with scales that are powers of two (so that every ``weight_scale`` is exact) and gains in 0.5..1.5.
    """
    if not 0 <= zeros <= 1:
        raise ValueError(f"zeros must be a share in 0..1, not {zeros!r}")
    rng = np.random.default_rng(seed)

    def gains(size):
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    def matrix(shape):
        weights = rng.choice(np.array([-1, 0, 1], np.int8), shape, p=((1 - zeros) / 2, zeros, (1 - zeros) / 2))
        return Ternary(weights=weights, scale=2.0 ** -round(np.log2(shape[1]) / 2))

    layers = tuple(Layer(matrices={name: matrix(shape) for name, shape in config.matrix_shapes.items()},
                         norms={name: gains(size) for name, size in config.norm_sizes.items()})
                   for _ in range(config.num_hidden_layers))
    embed = rng.normal(size=(config.vocab_size, config.hidden_size)).astype(np.float32)
    return Checkpoint(config=config, embed=embed, layers=layers, final_norm=gains(config.hidden_size))
