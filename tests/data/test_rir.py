"""The image method against what physics and the definition say."""

import numpy as np
import pytest

from speechkit.data.rir import SPEED_OF_SOUND, absorption_for, room_response

ROOM, SOURCE, MICROPHONE = (5.0, 4.0, 3.0), (1.0, 1.2, 1.5), (2.3, 2.1, 1.4)


def test_full_absorption_leaves_the_direct_path() -> None:
    distance = float(np.linalg.norm(np.subtract(SOURCE, MICROPHONE)))
    response = room_response(ROOM, SOURCE, MICROPHONE, absorption=1, seconds=0.1)
    assert response.shape == (1600,)
    delay = distance / SPEED_OF_SOUND * 16000
    assert abs(int(np.abs(response).argmax()) - delay) < 1
    # The sum over a band-limited impulse weighted with a tone is that tone, delayed and attenuated.
    for hz in (500, 2000, 6000):
        heard = np.sum(response * np.exp(-2j * np.pi * hz / 16000 * np.arange(1600)))
        expected = np.exp(-2j * np.pi * hz / 16000 * delay) / distance
        assert abs(heard - expected) < 0.05  # half a step of 1/16 sample


def test_paths_are_those_of_the_mirrored_sources() -> None:
    absorption, seconds, hz = 0.4, 0.03, 1200
    walls = [(axis, wall) for axis in range(3) for wall in (0.0, ROOM[axis])]
    bounces = {SOURCE: 0}
    for order in range(1, 8):  # an image in a wall is mirrored in every wall again
        for image in [image for image, count in bounces.items() if count == order - 1]:
            for axis, wall in walls:
                mirrored = list(image)
                mirrored[axis] = round(2 * wall - image[axis], 6)
                bounces.setdefault((mirrored[0], mirrored[1], mirrored[2]), order)
    expected = 0j
    for image, count in bounces.items():
        distance = float(np.linalg.norm(np.subtract(image, MICROPHONE)))
        if distance < SPEED_OF_SOUND * seconds:
            delay = distance / SPEED_OF_SOUND
            expected += (1 - absorption) ** (count / 2) / distance * np.exp(-2j * np.pi * hz * delay)
    response = room_response(ROOM, SOURCE, MICROPHONE, absorption, seconds)
    heard = np.sum(response * np.exp(-2j * np.pi * hz / 16000 * np.arange(len(response))))
    assert abs(heard - expected) < 0.03 * abs(expected)


@pytest.mark.parametrize("t60_s", [0.2, 0.4])
def test_the_decay_is_near_the_wanted_time(t60_s: float) -> None:
    response = room_response(ROOM, SOURCE, MICROPHONE, absorption_for(ROOM, t60_s), t60_s)
    energy = np.cumsum((response.astype(np.float64) ** 2)[::-1])[::-1]
    decay_db = 10 * np.log10(energy / energy[0])
    measured = 3 * (int(np.argmax(decay_db < -25)) - int(np.argmax(decay_db < -5))) / 16000
    # Eyring takes the field for diffuse, which that of a rectangular room is not quite.
    assert 0.75 * t60_s < measured < 1.4 * t60_s


def test_source_and_microphone_may_be_exchanged() -> None:
    there = room_response(ROOM, SOURCE, MICROPHONE, 0.3, 0.1)
    back = room_response(ROOM, MICROPHONE, SOURCE, 0.3, 0.1)
    np.testing.assert_allclose(there, back, atol=1e-5)


def test_impossible_rooms_are_refused() -> None:
    with pytest.raises(ValueError, match="source_m must lie within"):
        room_response(ROOM, (6.0, 1.0, 1.0), MICROPHONE, 0.3, 0.1)
    with pytest.raises(ValueError, match="absorption must be from 0 to 1"):
        room_response(ROOM, SOURCE, MICROPHONE, 1.5, 0.1)
    with pytest.raises(ValueError, match="three lengths above 0"):
        absorption_for((1.0, 0.0, 2.0), 0.3)
    with pytest.raises(ValueError, match="t60_s must be above 0"):
        absorption_for(ROOM, 0)
