"""Checks the clients' own reading of the formats: against the examples of the RFCs and against itself."""

import json
import pathlib
import random
import unittest

import waystation as ws


class Formats(unittest.TestCase):
    def test_varints_of_rfc_9000_appendix_a(self):
        for data, value in (
            ("c2197c5eff14e88c", 151_288_809_941_952_652),
            ("9d7f3e7d", 494_878_333),
            ("7bbd", 15_293),
            ("25", 37),
        ):
            data = bytes.fromhex(data)
            self.assertEqual(ws.read_varint(data), (value, len(data)))
            self.assertEqual(ws.varint(value), data)
        self.assertEqual(ws.read_varint(bytes.fromhex("4025")), (37, 2), "longer forms are read")
        self.assertIsNone(ws.read_varint(b"\x40"))
        self.assertIsNone(ws.read_varint(b""))
        for edge in (0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, ws.VARINT_MAX):
            self.assertEqual(ws.read_varint(ws.varint(edge))[0], edge)
        self.assertRaises(ValueError, ws.varint, ws.VARINT_MAX + 1)

    def test_frames_survive_any_cut(self):
        dice = random.Random(7)
        want = [(ws.PIECE, (h, h << 20, dice.randbytes(h * 40))) for h in range(9)] + [(ws.ENDING, b'{"reason":"x"}')]
        wire = b"".join(ws.piece(k, *b) if k == ws.PIECE else ws.frame(k, b) for k, b in want)
        for size in (1, 2, 3, 7, 50, len(wire)):
            decoder, got = ws.Decoder(), []
            for at in range(0, len(wire), size):
                got += decoder.push(wire[at : at + size])
            self.assertFalse(decoder.pending())
            self.assertEqual([(k, ws.read_piece(b) if k == ws.PIECE else b) for k, b in got], want)
        self.assertRaises(ws.ProtocolError, ws.split_message, wire[:-1])

    def test_a_frame_over_the_limit_is_refused_by_its_length(self):
        head = ws.varint(ws.CHUNK) + ws.varint(ws.MAX_CONTROL + 1)
        self.assertRaises(ws.ProtocolError, ws.Decoder().push, head)

    def test_headers(self):
        members = {"incident": 'a"b\\', "index": 7, "name": "Tür 5%", "sig": b"\x00\xff"}
        want = 'incident="a\\"b\\\\", index=7, name=%"T%c3%bcr 5%25", sig=:AP8=:'
        self.assertEqual(ws.dictionary(members), want)
        self.assertEqual(ws.repr_digest(b""), "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
        self.assertEqual(ws.watch_header({"lanes": ["audio_priority"], "from": {"stream": "s", "index": 3}}),
                         'lanes=("audio_priority"), from="s/3"')
        self.assertIsNone(ws.watch_header({}))

    def test_a_reference_depends_on_every_part(self):
        names = {ws.chunk_ref(*at) for at in (("a", "b", 1), ("ab", "", 1), ("a", "b", 2), ("b", "a", 1))}
        self.assertEqual(len(names), 4)
        self.assertTrue(all(len(name) == 22 for name in names))

    def test_what_a_contact_counts_as_whole(self):
        chunk = {"handle": 1, "stream": "s", "index": 1, "state": "arriving", "length": 3,
                 "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
        for data, intact in ((b"abc", True), (b"abd", False), (b"ab", False)):
            seen = ws.Seen({"chunks": 1}, lambda event: None)
            for kind, body in ws.split_message(
                ws.frame(ws.CHUNK, chunk) + ws.piece(ws.PIECE, 1, 0, data) + ws.frame(ws.COMPLETE, {"handle": 1})
            ):
                seen.take(kind, body)
            self.assertTrue(seen.enough())
            self.assertEqual((seen.complete[0]["intact"], seen.summary()["ok"]), (intact, intact))
        seen = ws.Seen({}, lambda event: None)
        seen.take(ws.CHUNK, json.dumps(chunk).encode())
        self.assertRaises(ws.ProtocolError, seen.take, ws.PIECE, ws.varint(1) + ws.varint(1) + b"a")

    def test_lock_files_name_no_host(self):
        here = pathlib.Path(__file__).parent
        for name in ("package-lock.json", "requirements.txt"):
            self.assertNotIn("://", (here / name).read_text(), name)


if __name__ == "__main__":
    unittest.main()
