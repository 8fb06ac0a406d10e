"""Texts that a real encoder meets: 1 to 512 tokens, many languages, and what breaks careless servers."""

LANGUAGES = [
    "How do I recover a deleted file?",
    "Wie stelle ich eine gelöschte Datei wieder her?",
    "Comment récupérer un fichier supprimé ?",
    "¿Cómo recupero un archivo borrado?",
    "Como recupero um ficheiro apagado?",
    "Come recupero un file cancellato?",
    "Как восстановить удалённый файл?",
    "削除したファイルを復元するにはどうすればよいですか？",
    "如何恢复已删除的文件？",
    "삭제된 파일을 어떻게 복구하나요?",
    "كيف أستعيد ملفًا محذوفًا؟",
    "איך משחזרים קובץ שנמחק?",
    "मैं हटाई गई फ़ाइल कैसे वापस लाऊँ?",
    "ฉันจะกู้คืนไฟล์ที่ถูกลบได้อย่างไร",
    "Πώς ανακτώ ένα διαγραμμένο αρχείο;",
    "Làm thế nào để khôi phục tệp đã xóa?",
    "Silinen bir dosyayı nasıl kurtarırım?",
    "Jak odzyskać usunięty plik?",
]
ODD = [
    "",
    " ",
    "\n\t\r",
    "a",
    "🙂",
    "👩‍👩‍👧‍👦 🏳️‍🌈 family and flag",
    "control \x00\x01\x1f\x7f characters \x85",
    "zero\u200bwidth\u200djoiner \ufeff bom",
    "[CLS] literal [SEP] special [PAD] tokens [MASK]",
    "ﬁ ligature, e\u0301 combining, Å Å",
    "x" * 3000,
    "\u202eright to left override",
    "https://example.org/?q=1&r=%20#top",
    "SELECT * FROM t WHERE a = 'b'; --",
]
LENGTHS = [
    " ".join(f"word{number % 97}" for number in range(count))
    for count in (1, 2, 5, 17, 60, 128, 254, 255, 400)
]
LONG = ["The quick brown fox jumps over the lazy dog. " * repeats for repeats in (3, 12, 25, 26, 50, 60)]

TEXTS = LANGUAGES + ODD + LENGTHS + LONG


def distinct(count: int, words: int) -> list[str]:
    """`count` texts of so many words, no two of them alike: equal ones may be computed once."""
    return [f"{number} " + "word " * (words - 1) for number in range(count)]
