// Files that go with a message: images and sounds as the model takes them, text as text.
import { postFile } from "./api.js";

const SOUNDS = { "audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3",
  "audio/flac": "flac", "audio/x-flac": "flac", "audio/ogg": "ogg" };
const MOST_TEXT = 2 ** 22; // characters

/** What a message keeps of a file; Error says why it cannot be taken. */
export async function attached(file, modalities) {
  const { name, type } = file;
  if (type.startsWith("image/")) {
    if (!modalities.vision) throw new Error(`${name}: this model takes no images`);
    return { name, kind: "image", data: await toDataUrl(file) };
  }
  if (type.startsWith("audio/")) {
    if (!modalities.audio) throw new Error(`${name}: this model takes no sounds`);
    const format = SOUNDS[type];
    if (!format) throw new Error(`${name}: ${type} is not known; WAV, MP3, FLAC and Ogg are`);
    return { name, kind: "audio", format, data: (await toDataUrl(file)).split(",")[1] };
  }
  const data = type === "application/pdf" || name.toLowerCase().endsWith(".pdf")
    ? (await postFile("page/text", file)).text : await toText(file);
  if (data.length > MOST_TEXT) throw new Error(`${name}: too long, ${data.length} characters`);
  return { name, kind: "text", data };
}

function toDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function toText(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name}: not an image, a sound, a PDF or a text in UTF-8`);
  }
}
