"""Networks in folders and on the Hugging Face hub: weights as safetensors, configuration as JSON, and a model card.

Each package that has networks makes one `Library` of them.
"""

import copy
import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vsa_core.hub.pretrained import Pretrained
from vsa_core.hub.typed import as_dataclass, as_type

__all__ = ["Library", "class_name", "load_strict", "resolve"]

Network = TypeVar("Network", bound=Pretrained)
WEIGHTS, CARD, CONFIG = "model.safetensors", "README.md", "config.json"
Accuracies = tuple[tuple[int | tuple[int, ...], float], ...]
"""What config.json holds as accuracy: a share for each n, which is a number or a grid."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class AtMost(TorchFunctionMode):
    """Ends, by a ValueError, the making of a network that needs far more tensors than are stored, such as one of depth 10^6."""

    def __init__(self, stored: int) -> None:
        super().__init__()
        self.stored, self.made = stored, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.made += func is torch.empty  # as torch's layers make their parameters
        if self.made > 100 + 10 * self.stored:  # a constructor may make some that it does not keep
            raise ValueError(f"config describes a network of far more than the {self.stored} tensors in {WEIGHTS}")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class Library(Generic[Network]):
    """Saves, loads and uploads the networks of a package.

    Loading makes a network again as `type(model)(model.config)` on the meta device, so its state dict must hold all that the
    constructor draws or computes.
    """

    name: str
    """Name of the package, as pip knows it."""
    version: str
    """Version of the package; config.json records it, and errors name it."""
    models: Mapping[type[Network], type[Any]]
    """Configuration class (a dataclass) of each class of network."""
    card: Callable[[Network, str, Mapping[Any, float] | None, str | None], str]
    """Writes a model card from network, name, accuracy and command; raises ValueError for an accuracy that cannot be."""
    assembled: Collection[type[Network]] = ()
    """Classes of networks made of the caller's modules, which no configuration describes."""

    def save(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
    ) -> None:
        """Write model.safetensors, config.json and a model card, README.md, that `load` and the hub read.

        Each file is written through to the disk under another name, then renamed. config.json holds a SHA-256 of itself and the
        weights, so a folder whose save was interrupted or whose files were changed is refused by `load`.

        Args:
            model: the network; it is not changed.
            folder: created if missing; files of these three names are replaced.
            accuracy: test accuracy from 0 to 1 for each n that was measured: inputs per pass, or a grid such as (2, 2).
                `load` gives it back as `model.accuracy`, which is not saved again unless given here: after more training it
                would no longer be true.
            command: command that trained the network, for the card.

        Raises:
            TypeError: the model is not a network of this library.
            ValueError: a weight is not finite or does not fit the configuration, or an accuracy is out of range.
            ImportError: safetensors is not installed.
            OSError: the folder cannot be written.
        """
        safetensors, folder = import_extra("safetensors.torch"), Path(folder)
        model = self.check_class(model)
        path = folder.resolve()
        name = path.parent.name if path.name == "model" else path.name  # a run's network is named after the run
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
        }
        entries = {
            "class": type(model).__name__,
            f"{self.name}_version": self.version,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "config": asdict(model.config),
            "accuracy": list((accuracy or {}).items()),
        }
        settings = json.loads(json.dumps(entries, default=lambda number: number.item()))  # NumPy's numbers become Python's
        build = (lambda *_: copy.deepcopy(model).to("meta")) if type(model) in self.assembled else None
        load_strict(self.build_network(settings, weights, build), weights)  # what would not load is not written
        data = safetensors.save(weights, metadata={"format": "pt"})
        settings["sha256"] = digest(settings, data)
        contents = {
            WEIGHTS: data,
            CARD: self.card(model, name, accuracy, command).encode(errors="replace"),  # a folder's name need not be UTF-8
            CONFIG: (json.dumps(settings, indent=2) + "\n").encode(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
            for name, content in contents.items():
                Path(beside, name).write_bytes(content)
                sync(Path(beside, name))
            for name in contents:
                os.replace(Path(beside, name), folder / name)
            sync(folder)

    def load(
        self,
        source: str | os.PathLike[str],
        *,
        kind: type[Network] | None = None,
        build: Callable[[Any, Mapping[str, Tensor]], Network] | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> Network:
        """Load a network that `save` or `push` wrote, in eval mode and in the dtype that it was saved in.

        Nothing is unpickled, and no weight keeps its initial value: a file that does not fit exactly is refused.

        Args:
            source: a folder, a run directory or a repository id, as `resolve` takes it.
            kind: the only class of network to accept; any class of this library unless given.
            build: makes the network from its configuration, for networks made of the caller's modules (`assembled`); it is
                given the weights too, to compare sizes with before it allocates any.
            revision: branch, tag or commit of a repository.
            device: where the weights go.

        Raises:
            ValueError: a file is damaged or from another save; the network is of another class or library; config.json has an
                unknown field or one of another type; a weight is missing, unknown, of another shape or dtype, or not finite; or
                a folder is given a revision.
            FileNotFoundError: there is no such folder, or a file is missing from it.
            ImportError: safetensors, or for a repository huggingface_hub, is not installed.
            Exception: huggingface_hub cannot download the repository or its revision.
        """
        safetensors, folder = import_extra("safetensors.torch"), resolve(source, revision)
        settings, data = read_network_settings(folder), (folder / WEIGHTS).read_bytes()
        expected, found = settings.pop("sha256"), settings["class"]
        if (actual := digest(settings, data)) != expected:
            raise ValueError(
                f"the SHA-256 of {CONFIG} and {WEIGHTS} in {folder} is {actual}, expected {expected}: "
                "a file was changed or damaged, or the two are not from the same save"
            )
        if kind and found != kind.__name__ and found in (known.__name__ for known in self.models):
            raise ValueError(f"{source} holds a {found}, expected a {kind.__name__}: load it with {found}.from_pretrained")
        try:
            weights = safetensors.load(data)
            model = self.build_network(settings, weights, build)
            load_strict(model, weights)
            model.accuracy = dict(as_type(Accuracies, settings.get("accuracy", []), "accuracy"))
            if wrong := [share for share in model.accuracy.values() if not 0 <= share <= 1]:
                raise ValueError(f"accuracy is {wrong[0]}; expected shares from 0 to 1")
        except Exception as error:
            writers = [f"{entry.removesuffix('_version')} {settings[entry]}" for entry in settings if entry.endswith("_version")]
            versions = f"written by {', '.join(writers) or 'an unknown program'}, read by {self.name} {self.version}"
            raise ValueError(f"{folder} ({versions}) does not hold a network that fits: {error}") from error
        return model.to(device).eval()

    def push(
        self,
        model: nn.Module,
        repo_id: str,
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the files of `save` in one commit; a repository that does not exist is created.

        Args:
            model: the network; it is not changed.
            repo_id: name or user/name.
            accuracy: test accuracy from 0 to 1 for each n, as for `save`.
            command: command that trained the network, for the card.
            private: whether a new repository is private; an existing one keeps its visibility.
            token: access token of a user who may write there; the one of `hf auth login` unless given.

        Returns:
            Address of the repository.

        Raises:
            TypeError: the model is not a network of this library.
            ValueError: a weight is not finite or does not fit the configuration, or an accuracy is out of range.
            ImportError: huggingface_hub or safetensors is not installed.
            Exception: huggingface_hub cannot create or write the repository.
        """
        model = self.check_class(model)
        api = import_extra("huggingface_hub").HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save(model, folder, accuracy=accuracy, command=command)  # refuses before a repository is created
            repository = api.create_repo(repo_id, private=private, exist_ok=True)
            Path(folder, CARD).write_bytes(self.card(model, repository.repo_id, accuracy, command).encode(errors="replace"))
            message = f"{type(model).__name__}, {self.name} {self.version}"
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
        return str(repository)

    def check_class(self, model: nn.Module) -> Network:
        """Return the model if its class is one of this library's, else raise TypeError."""
        for kind in self.models:
            if type(model) is kind:
                return model
        names = " or a ".join(kind.__name__ for kind in self.models)
        raise TypeError(f"model is a {type(model).__name__}; only a {names} has a configuration to save")

    def build_network(
        self,
        settings: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        build: Callable[[Any, Mapping[str, Tensor]], Network] | None,
    ) -> Network:
        """Make the network that config.json describes, on the meta device (without memory or random draws) or by `build`."""
        kinds = {kind.__name__: kind for kind in self.models}
        for entry, choices in (("class", list(kinds)), ("dtype", list(DTYPES))):
            if settings[entry] not in choices:
                raise ValueError(f"{entry} must be one of {', '.join(choices)}, got {settings[entry]!r}")
        kind, dtype = kinds[settings["class"]], DTYPES[settings["dtype"]]
        config = as_dataclass(self.models[kind], settings["config"], "config")
        if build is not None:
            return build(config, weights).to(dtype)
        if kind in self.assembled:
            raise ValueError(f"a {kind.__name__} is made of modules of yours: give them to {kind.__name__}.from_pretrained")
        make: Callable[[Any], Network] = kind
        with AtMost(len(weights)), torch.device("meta"):
            return make(config).to(dtype)


def resolve(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Find the folder that holds a saved network, downloading it from the hub if need be.

    Args:
        source: a folder with model.safetensors; a run directory, which has one in its `model` folder; or, where no folder has
            that name, a repository id, name or user/name.
        revision: branch, tag or commit of a repository.

    Returns:
        The folder; of a repository, a copy of its weights and configuration in the cache of huggingface_hub.

    Raises:
        ValueError: a folder is given a revision.
        FileNotFoundError: there is no such folder and `source` is not a repository id, or the folder holds no saved network.
        ImportError: huggingface_hub is not installed.
        Exception: huggingface_hub cannot download the repository or its revision.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revision; got {revision!r}")
        for place in (folder, folder / "model"):
            if (place / WEIGHTS).is_file():
                return place
        expected = "name a folder that save_pretrained wrote, or a finished run"
        raise FileNotFoundError(f"{source} has no {WEIGHTS}, nor does its folder model: {expected}")
    if not isinstance(source, str) or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", source):
        raise FileNotFoundError(f"no such folder: {source}; nor is it a repository id, name or user/name")
    download = import_extra("huggingface_hub").snapshot_download
    try:
        return Path(download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:
        error.add_note(f"{source!r} was taken for a repository on the Hugging Face hub, because no folder has that name")
        raise


def class_name(folder: str | os.PathLike[str]) -> str:
    """Name the class of the network that a folder holds, such as "MIMOConv", without loading it; `resolve` finds the folder.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: config.json is not one that `Library.save` wrote.
    """
    return str(read_network_settings(Path(folder))["class"])


def read_network_settings(folder: Path) -> dict[str, Any]:
    """Read config.json; ValueError unless it has a class, a configuration and a checksum."""
    text = (folder / CONFIG).read_bytes()
    try:
        settings: dict[str, Any] = json.loads(text)
        _ = settings["class"], settings["config"], settings["sha256"]
    except Exception as error:
        raise ValueError(f"{folder / CONFIG} is not JSON as save_pretrained writes it: {error!r}") from error
    return settings


def import_extra(name: str) -> ModuleType:
    """Import a module that only the extra `hub` installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        install = "pip install 'vsa-core[hub]'"
        missing = f"{name.partition('.')[0]} is not installed: `{install}`, or in a checkout `scripts/uv {install}`"
        raise ImportError(missing) from error


def load_strict(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load every entry of a model's state dict, and nothing else; after an error the model is as it was.

    A model on the meta device takes over the tensors; any other model copies their values.

    Raises:
        ValueError: a weight is missing, unknown, of another shape or dtype than the model's, or not finite.
    """
    expected = model.state_dict()
    if weights.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise ValueError(f"the weights do not fit a {type(model).__name__}: missing {missing}, unknown {unknown}")
    for name, own in expected.items():
        value = weights[name]
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}, expected {tuple(own.shape)} and {own.dtype}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values, expected finite ones")
    model.load_state_dict(dict(weights), assign=any(own.is_meta for own in expected.values()))


def sync(path: Path) -> None:
    """Write a file or folder through to the disk, so that it survives a loss of power. Windows cannot sync folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(settings: Mapping[str, Any], data: bytes) -> str:
    """Compute the SHA-256 of the entries of config.json and the weights together."""
    both = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    both.update(data)
    return both.hexdigest()
