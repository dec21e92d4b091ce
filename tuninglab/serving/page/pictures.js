/** Pictures as they are sent: made smaller here, so that little goes over the line. */

const LONGEST_PX = 1024;
// Up to here a picture is sent as it is, without loss: drawings, and what is as small as what
// models see. Beyond, a PNG of a photograph is large.
const LOSSLESS_PX = 512;
const JPEG_QUALITY = 0.9;

/** A file that is no picture, or none that this browser can read. */
export class PictureError extends Error {}

/**
 * A picture to send, the right way up and without what a camera writes beside it.
 * @param {Blob} blob
 * @param {string} name how it is called to the user.
 * @returns {Promise<{url: string, name: string}>} with a data: URL.
 * @throws {PictureError} naming the file.
 */
export async function readPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new PictureError(`${name} cannot be read as a picture. Give a PNG, JPEG or WebP file.`);
  }
  try {
    return { url: smaller(bitmap, bitmap.width, bitmap.height), name };
  } finally {
    bitmap.close();
  }
}

/** What a video shows at this moment, as a picture to send. */
export function readFrame(video) {
  return { url: smaller(video, video.videoWidth, video.videoHeight), name: "camera" };
}

function smaller(source, width, height) {
  const longest = Math.max(width, height);
  const scale = Math.min(1, LONGEST_PX / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  // What is transparent is on white, as in training; JPEG would make it black.
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const lossless = longest <= LOSSLESS_PX;
  return lossless ? canvas.toDataURL("image/png") : canvas.toDataURL("image/jpeg", JPEG_QUALITY);
}
