/** A picture of the camera: by the phone's own camera, or out of what a computer's one sees. */

import { byId } from "./elements.js";
import { readFrame } from "./pictures.js";

/**
 * @param {(picture: {url: string, name: string}) => void} onPicture
 * @param {(text: string) => void} onTrouble is told why there is none.
 */
export async function openCamera(onPicture, onTrouble) {
  const devices = navigator.mediaDevices;
  if (!devices?.getUserMedia || matchMedia("(pointer: coarse)").matches) {
    // A phone's own camera focuses and turns better than a page does.
    byId("capture").click();
    return;
  }
  let stream;
  try {
    stream = await devices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    onTrouble(`The camera cannot be used (${error.name}). Choose a picture file instead.`);
    return;
  }
  const dialog = byId("camera");
  const view = byId("view");
  view.srcObject = stream;
  byId("cancel-camera").onclick = () => dialog.close();
  byId("take").onclick = () => {
    // Before its first frame a camera has no size.
    if (view.videoWidth === 0) return;
    onPicture(readFrame(view));
    dialog.close();
  };
  dialog.onclose = () => {
    for (const track of stream.getTracks()) track.stop();
    view.srcObject = null;
    byId("question").focus();
  };
  dialog.showModal();
}
