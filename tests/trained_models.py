"""Small models that were really trained, for a moment, so that their first choice means something."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_thread():
    """These models are too small for more, and `load` sets the number for the whole process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """By name, the file that a job's model is found as, its weights trained and stored in the meantime."""
    import small_models
    import torch

    from raytrain.infer.backends.find import find_model

    folder, found = tmp_path_factory.mktemp("trained"), {}

    def of(name: str):
        if name not in found:
            from raytrain.infer.backends.module import built

            with torch.random.fork_rng():
                torch.manual_seed(0)
                module = built(find_model(small_models.section(name)))
                small_models.train(module, name)
            torch.save(module.state_dict(), folder / f"{name}.pt")
            found[name] = find_model(small_models.section(name, weights=str(folder / f"{name}.pt")))
        return found[name]

    return of
