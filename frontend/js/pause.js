/** A wait that can be cut short. A wake that comes before the wait ends it at once. */
export class Pause {
	#isWoken = false;
	#end = () => {};

	/** @type {Fn.wait} */
	async wait(ms) {
		if (!this.#isWoken) {
			await new Promise(resolve => {
				const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
				this.#end = () => {
					clearTimeout(timer);
					resolve(undefined);
				};
			});
		}
		this.#isWoken = false;
	}

	wake() {
		this.#isWoken = true;
		this.#end();
	}
}
