# mypy: disable-error-code="import-not-found,misc,no-untyped-def"
"""LitServe, batching as https://lightning.ai/docs/litserve/features/batching says."""

import base64

import litserve
from PIL import Image

from bench.rivals.shared import BATCH, PORT, TIMEOUT_S, WAIT_MS, WORKERS, answer, decode, load
from clip4str import Reading


class Words(litserve.LitAPI):
    """Images in base64, their readings."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (the model finds the best itself)
        """Once in each worker."""
        self.recognizer = load()

    def decode_request(self, request) -> Image.Image:  # untyped: a type would be the body's schema
        """JSON with one image."""
        return decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Image.Image]) -> list[Image.Image]:
        """The model takes a list."""
        return inputs

    def predict(self, images: list[Image.Image]) -> list[Reading]:
        """One batch."""
        return self.recognizer.read(images)

    def unbatch(self, output: list[Reading]) -> list[Reading]:
        """It gives a list, too."""
        return output

    def encode_response(self, output: Reading):  # likewise
        """One reading."""
        return answer(output)


if __name__ == "__main__":
    litserve.LitServer(
        Words(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000),
        workers_per_device=WORKERS,
        timeout=TIMEOUT_S,
        fast_queue=True,
    ).run(host="127.0.0.1", port=PORT, num_api_servers=1, log_level="warning", generate_client_file=False)
