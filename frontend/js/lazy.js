/** Parts of the page that are read when they are first used: a first picture needs none of them. */

/** @type {Fn.whenRead} */
export function whenRead(store, part, use) {
	part.then(use, () => store.say("This part of the page was not read: the server of the page does not answer. Try again when it does."));
}
