"""Raw data sets, one file each: NAME KIND OPTIONS CITATION LICENSE CLASSES MODALITY cases(root) read(case) files(case)."""

READERS: dict[str, str] = {"luna": "pcrl_cli.readers.luna", "folder": "pcrl_cli.readers.folder"}
