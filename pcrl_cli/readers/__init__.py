"""Raw data sets, one file each: NAME KIND OPTIONS CITATION LICENSE CLASSES MODALITY cases(root) read(case) files(case)."""

READERS: dict[str, str] = {
    "luna": "pcrl_cli.readers.luna",
    "lits": "pcrl_cli.readers.lits",
    "brats": "pcrl_cli.readers.brats",
    "nih": "pcrl_cli.readers.nih",
    "chexpert": "pcrl_cli.readers.chexpert",
    "folder": "pcrl_cli.readers.folder",  # of radiographs: image_folder, see `folder.module_for`
}
