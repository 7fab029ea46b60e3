"""Settings of a server: `serve run serve.app:build key=value ...` or `python -m serve --key value ...`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_PROJECT = Path(__file__).resolve().parent.parent

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
    """The MLflow registry; the variable MLFLOW_TRACKING_URI comes first."""
    aliases: str = "challenger"
    """Further aliases of the model that a request may choose by X-Model-Alias, separated by commas."""
    poll_seconds: float = Field(default=5.0, gt=0)
    """Seconds between two looks at what the aliases name."""
    max_models: int = Field(default=3, ge=2)
    """Most versions that a model replica holds: the served one, the one before it, those of other aliases."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forwards; auto is bf16 where the device has it and it is exact enough on a trial."""
    compile: bool = False
    """Whether the model is compiled (torch.compile) before it is ready: minutes once, faster forwards."""
    root_path: Annotated[str, Field(pattern=r"^(/[\w.~-]+)*$")] = ""
    """Prefix, as /mst, that a reverse proxy leaves in paths; one that takes it away needs nothing here."""
    image_store: str = str(_PROJECT / "out" / "serve" / "images")
    """Folder, or s3://bucket/prefix, in which images are kept under their sha256."""
    image_seconds: float = Field(default=7 * 24 * 3600.0, gt=0)
    """Seconds that an image is kept from its last upload."""
    image_bytes: int = Field(default=20 * 2**30, ge=1)
    """Most bytes of all stored images; the oldest go first."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Most pixels of an image; larger ones are refused before they are decoded."""
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    """Most bytes of a request's body."""
    cache_bytes: int = Field(default=512 * 2**20, ge=1)
    """Most memory for decoded images, and as much again for predictions, of each HTTP replica."""
    label_studio_url: str = ""
    """Label Studio's address as this server reaches it, the only one that tasks' images are fetched from."""
    label_studio_token: str = ""
    """Token of its user who may see them; the variable MST_LABEL_STUDIO_TOKEN comes first."""
    max_requests: int = Field(default=64, ge=1)
    """Most requests that one HTTP replica has in hand; more are answered 503 at once."""
    queue_seconds: float = Field(default=8.0, gt=0)
    """Seconds of work that may wait for the model; further clicks are answered 503 at once."""
    deadline_seconds: float = Field(default=30.0, gt=0)
    """Seconds after which a request is answered 503, and one whose body has not come 408."""
    api_keys: str = ""
    """File with a key in each line; the keys of the variable MST_API_KEYS count too."""
    key_rate: float = Field(default=50.0, gt=0)
    """Most requests a second for each key and HTTP replica, on the average; more are answered 429."""
    allow_anonymous: bool = False
    """Whether others than this machine are answered where there are no keys."""
    http_replicas: int = Field(default=1, ge=1)
    """Replicas that speak HTTP."""
    min_replicas: int = Field(default=1, ge=0)
    """Model replicas that are always there; with 0 the first click waits for one to start."""
    max_replicas: int = Field(default=1, ge=1)
    """Model replicas under load."""
    upscale_delay_seconds: float = Field(default=5.0, ge=0)
    """Seconds of load before there are more model replicas."""
    downscale_delay_seconds: float = Field(default=300.0, ge=0)
    """Seconds of less load before there are fewer."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    """Cores for each model replica."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs for each model replica, or the share of one."""
    max_batch: int = Field(default=8, ge=1)
    """Most clicks, of any users, in one forward."""

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

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self
