import filecmp
import json

import numpy as np

from mst.data.scenes import draw_scene, shipped_photos
from mst.data.sources import read_records
from mst.data.synthetic import write_data_set


def test_the_same_seed_gives_the_same_folder(scenes, tmp_path):
    write_data_set(tmp_path / "again", (12, 4, 4), processes=1)
    write_data_set(tmp_path / "other", (12, 4, 4), seed=1, processes=1)
    files = [str(path.relative_to(scenes)) for path in scenes.rglob("*") if path.is_file()]
    assert len(files) == 20 + 6
    assert filecmp.cmpfiles(scenes, tmp_path / "again", files, shallow=False)[0] == files
    assert set(filecmp.cmpfiles(scenes, tmp_path / "other", files, shallow=False)[1]) == set(files)


def test_annotations_decode_to_the_area_that_they_state(scenes):
    sources = ["coco:annotations/instances_train.json", "lvis:annotations/lvis_train.json"]
    objects = [each for record in read_records(sources, scenes) for each in record.objects]
    assert len(objects) > 50
    assert [each.decode().sum() for each in objects] == [each.area for each in objects]


def test_objects_differ_widely_in_size_occlude_and_nest():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(224, 224, rng, shipped_photos()) for _ in range(20)]
    objects = [each for scene in scenes for each in scene.objects]
    areas = [each.mask.sum() for each in objects]
    assert max(areas) > 50 * min(areas)
    assert any(each.mask.sum() < 0.8 * each.full_area for each in objects)
    parts = [(part, each) for each in objects for part in each.parts]
    assert parts
    assert all((part & ~each.mask).sum() == 0 for part, each in parts)


def test_objects_of_a_scene_do_not_overlap():
    scene = draw_scene(200, 200, np.random.default_rng(1), shipped_photos())
    assert np.sum([each.mask for each in scene.objects], axis=0).max() == 1


def test_both_annotation_files_list_the_same_images(scenes):
    tables = [
        json.loads((scenes / "annotations" / f"{name}_train.json").read_text())
        for name in ("instances", "lvis")
    ]
    assert tables[0]["images"] == tables[1]["images"]
    assert {each["iscrowd"] for each in tables[0]["annotations"]} <= {0, 1}
