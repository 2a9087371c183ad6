"""Small PDF files."""

from __future__ import annotations

import io

import pypdf


def pdf(n_pages: int, password: str = "") -> bytes:
    """Each page says ``Hello from a page``."""
    writer = pypdf.PdfWriter()
    for _ in range(n_pages):
        page = writer.add_blank_page(72, 72)
        content = pypdf.generic.DecodedStreamObject()
        content.set_data(b"BT /F 12 Tf (Hello from a page) Tj ET")
        page[pypdf.generic.NameObject("/Contents")] = writer._add_object(content)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        named = {
            pypdf.generic.NameObject(key): pypdf.generic.NameObject(value)
            for key, value in font.items()
        }
        fonts = pypdf.generic.DictionaryObject(
            {pypdf.generic.NameObject("/F"): pypdf.generic.DictionaryObject(named)}
        )
        page[pypdf.generic.NameObject("/Resources")] = pypdf.generic.DictionaryObject(
            {pypdf.generic.NameObject("/Font"): fonts}
        )
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()
