"""Settings of a server: `serve run serve.app:build key=value ...` or `python -m serve --port 8001 ...`."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import joblib
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

_PROJECT = Path(__file__).resolve().parent.parent

_TOKEN = "MST_LABEL_STUDIO_TOKEN"
_OWN = "docs favicon.ico healthz metrics openapi.json readyz v1 web"
_OF_PROTOCOLS = (
    "api delete duplicate_model health invocations job_status ping predict setup train v2 validate version "
    "versions webhook"
)
ROUTES = frozenset((*_OWN.split(), *_OF_PROTOCOLS.split()))
"""How the paths that the server answers begin."""


class ServeSettings(BaseModel):
    """How a server is set up; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = "models:/mst@champion"
    """The registered model to serve, or a checkpoint folder."""
    tracking_uri: str = Field(default=f"sqlite:///{_PROJECT / 'mlruns' / 'mlflow.db'}")
    """Address of the MLflow registry. The variable MLFLOW_TRACKING_URI comes first."""
    aliases: str = "challenger"
    """Other aliases of the model, separated by commas. A request chooses one by the header X-Model-Alias."""
    poll_seconds: float = Field(default=5.0, gt=0)
    """Seconds between two checks of which versions the aliases name."""
    max_models: int = Field(default=3, ge=2)
    """Most versions in a model replica: the served one, the previous one, and those of other aliases."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward pass: fp32, bf16, or auto (bf16 if the device has it and a trial is exact)."""
    encoder: Literal["auto", "torch", "openvino"] = "auto"
    """What encodes images for a model whose clicks enter late: torch, openvino (on CPUs), or auto (openvino
    on CPUs if it is installed). OpenVINO must be exact on a trial."""
    encoding_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of memory that each model in a replica uses for encoded images."""
    compile: bool = False
    """Compile the model (torch.compile): it is ready minutes later, and each forward pass is faster."""
    root_path: Annotated[str, Field(pattern=r"^(/[\w.~-]+)*$")] = ""
    """Prefix, such as /mst, that a reverse proxy leaves in paths. Empty if the proxy removes it."""
    image_store: str = str(_PROJECT / "out" / "serve" / "images")
    """Folder, or s3://bucket/prefix, for images. Each is stored under its sha256."""
    image_seconds: float = Field(default=7 * 24 * 3600.0, gt=0)
    """Seconds that an image is kept after its last upload."""
    image_bytes: int = Field(default=20 * 2**30, ge=1)
    """Most bytes of all stored images. The oldest are removed first."""
    annotation_store: str = ""
    """Folder, or s3://bucket/prefix, for the masks that annotators accept, with their images. Both are kept
    until they are deleted. Empty keeps nothing."""
    adapt_runs: str = ""
    """Folder for runs that adapt the champion to the accepted masks. Empty adapts nothing."""
    adapt_keys: str = ""
    """File with the API keys that may adapt. Empty lets every key."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Most pixels of an image. Larger images are refused before they are decoded."""
    pixels_in_hand: int = Field(default=80_000_000, ge=1)
    """Most pixels of all images that the requests in one HTTP replica hold. Further requests wait."""
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    """Most bytes of a request's body."""
    cache_bytes: int = Field(default=512 * 2**20, ge=1)
    """Bytes of memory that each HTTP replica uses for decoded images, and as many again for predictions."""
    label_studio_url: str = ""
    """Address of Label Studio, as this server reaches it. Images of tasks are fetched from there alone."""
    label_studio_token: str = ""
    """Token of a Label Studio user who may see these images. MST_LABEL_STUDIO_TOKEN comes first."""
    max_requests: int = Field(default=64, ge=1)
    """Most requests at a time in one HTTP replica. Further ones are answered 503 at once."""
    queue_seconds: float = Field(default=8.0, gt=0)
    """Most seconds of work that wait for the model. Further clicks are answered 503 at once."""
    deadline_seconds: float = Field(default=30.0, gt=0)
    """Seconds until a request is answered 503, or 408 if its body has not arrived."""
    api_keys: str = ""
    """File with an API key in each line. The keys in the variable MST_API_KEYS are valid too."""
    key_rate: float = Field(default=50.0, gt=0)
    """Mean requests a second that each key may send to an HTTP replica. More are answered 429."""
    requests_of_key: int = Field(default=32, ge=1)
    """Most requests at a time of each key in an HTTP replica. Further ones are answered 429 at once."""
    allow_anonymous: bool = False
    """Answer other machines although there are no API keys."""
    http_replicas: int = Field(default=1, ge=1)
    """Number of replicas that answer HTTP."""
    min_replicas: int = Field(default=1, ge=0)
    """Fewest model replicas. With 0, the first click waits until one has started."""
    max_replicas: int = Field(default=1, ge=1)
    """Most model replicas, under load."""
    upscale_delay_seconds: float = Field(default=5.0, ge=0)
    """Seconds of load until model replicas are added."""
    downscale_delay_seconds: float = Field(default=300.0, ge=0)
    """Seconds of low load until model replicas are removed."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    """CPU cores that Ray sets aside for each model replica."""
    threads_per_replica: int = Field(default=0, ge=0)
    """Threads of each model replica. With 0, the replicas share the cores of their machine or container; on a
    GPU it is one thread for each core that is set aside."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs for each model replica. A fraction is a share of one GPU."""
    max_batch: int = Field(default=8, ge=1)
    """Most clicks in one forward pass, from any users."""

    def threads(self) -> int:
        """Return how many threads a model replica on this machine uses."""
        if self.threads_per_replica:
            return self.threads_per_replica
        if self.gpus_per_replica:
            return max(1, int(self.cpus_per_replica))
        return max(1, int(joblib.cpu_count()) // self.max_replicas)

    def token_of_label_studio(self) -> str:
        """Return the token; the environment comes before the settings, which others may see."""
        return os.environ.get(_TOKEN, self.label_studio_token)

    def other_aliases(self) -> tuple[str, ...]:
        """Return the aliases that a request may choose."""
        return tuple(each.strip() for each in self.aliases.split(",") if each.strip())

    @field_validator("root_path")
    @classmethod
    def _root_path_is_no_route(cls, path: str) -> str:
        """Below /v1, say, nobody could tell whether the prefix of /v1/segment has been taken away."""
        if (first := path.partition("/")[2].partition("/")[0]) in ROUTES:
            raise ValueError(f"root_path {path} begins as the server's own /{first}; choose another prefix")
        return path

    @field_validator("label_studio_url")
    @classmethod
    def _label_studio_is_an_address(cls, url: str) -> str:
        """A wrong one would be found by the first annotator who clicks."""
        parts = urlsplit(url)
        if url and not (parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc):
            raise ValueError("label_studio_url is no address, such as http://label-studio:8080")
        return url

    @field_validator("image_store", "annotation_store", "adapt_runs")
    @classmethod
    def _store_is_one_place(cls, url: str, info: ValidationInfo) -> str:
        """A relative folder would be another one for each process."""
        if url and "://" not in url and not Path(url).is_absolute():
            name = info.field_name
            raise ValueError(f"{name} {url} is relative; give an absolute folder, or s3://bucket/prefix")
        return url

    @model_validator(mode="after")
    def _label_studio_lets_us_in(self) -> Self:
        if self.label_studio_url and not self.token_of_label_studio():
            raise ValueError(f"label_studio_url needs label_studio_token, or the variable {_TOKEN}")
        return self

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self
