"""One rank of a run with images, started by test_backends.py: every row's image is checked here."""

import sys
from pathlib import Path

import backends
import numpy as np
import tiny_chat
import torch


def main(model: str, out: Path) -> None:
    dataset, spy = backends.same_text_other_images("image"), backends.Spy()
    args = backends.config(out, per_device_train_batch_size=8)
    trainer = backends.run(model, args, rewards=spy, dataset=dataset)
    assert trainer.accelerator.num_processes == 2
    assert any(len(set(record.allocation.counts)) > 1 for record in trainer.records)
    for seen, output, record in zip(spy.calls, trainer.outputs, trainer.records, strict=True):
        assert set(seen["name"]) <= set(record.keys)
        images = [np.asarray(tiny_chat.image(int(name.removeprefix("prompt ")))) for name in seen["name"]]
        assert all((np.asarray(one) == image).all() for one, image in zip(seen["image"], images, strict=True))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(output["pixel_values"], pixels)
    rank = trainer.accelerator.process_index
    (out / f"rank{rank}.txt").write_text("\n".join(name for seen in spy.calls[1:] for name in seen["name"]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
