/** Questions of the run to try: a click puts one into the composer. */

import { ApiError, examplePicture, examples } from "./api.js";
import { finish, isEditing, put, tell } from "./composer.js";
import { byId, make } from "./elements.js";
import { PictureError, readPicture } from "./pictures.js";

/** Shows the examples of the server, if it has any. */
export async function startGallery() {
  const found = await examples();
  byId("examples").hidden = found.length === 0;
  byId("cards").replaceChildren(...found.map(card));
}

function card({ question, answer, picture }) {
  const blob = picture && examplePicture(picture);
  const image = picture && make("img", { alt: "" });
  // Not by its address: an <img> sends no key.
  blob?.then((got) => (image.src = URL.createObjectURL(got)), () => image.remove());
  const use = async () => {
    try {
      const pictures = blob ? [await readPicture(await blob, "the example's picture")] : [];
      if (isEditing()) finish();
      put({ text: question.trim(), pictures, truth: answer || null });
      byId("question").focus();
    } catch (error) {
      if (!(error instanceof ApiError || error instanceof PictureError)) throw error;
      tell(error.message);
    }
  };
  return make("li", {}, make("button", { type: "button", className: "card", click: use },
    image, make("span", { dir: "auto" }, question)));
}
