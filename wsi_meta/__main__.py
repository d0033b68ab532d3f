"""``python -m wsi_meta``: the same as the ``wsi-meta`` command; what ``torchrun -m`` starts."""

from wsi_meta.cli import main

if __name__ == "__main__":
    main(prog_name="wsi-meta")
