"""What each token adds to a text, which --watch colours one by one: together the pieces are the text."""
from data.tokenizer import bpe, byte_level, chars, decode, encode, pieces, words


def test_the_pieces_of_a_text_are_the_text_for_every_tokenizer():
    text = "zwei Ärzte, 東京, 🙂 and two dogs"
    for encoding in (chars(text), byte_level(), bpe(text * 9, 300, alphabet=text)):
        ids = encode(encoding, text).tolist()
        assert "".join(pieces(encoding, ids)) == text and len(pieces(encoding, ids)) == len(ids)


def test_words_keep_their_spaces_and_gaps_their_place():
    encoding = words(["two", "old", "dogs"])
    assert pieces(encoding, [0, 3, 2]) == ["two", " _", " dogs"] and decode(encoding, [0, 3, 2]) == "two _ dogs"
    assert pieces(encoding, []) == [] and pieces(encoding, [2]) == ["dogs"]


def test_a_character_of_several_tokens_belongs_to_the_last_and_a_broken_one_is_marked():
    emoji = list("🙂".encode())
    assert pieces(byte_level(), emoji) == ["", "", "", "🙂"]
    assert pieces(byte_level(), [65, *emoji[:2]]) == ["A", "", "\ufffd"]
    assert pieces(byte_level(), [*emoji[:2], 65]) == ["", "", "\ufffdA"]
