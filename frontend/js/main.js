/** Puts the page together. */

import { ServiceClient } from "./api.js";
import { serviceAddress } from "./config.js";
import { Connection } from "./connection.js";
import { Gallery } from "./gallery.js";
import { Runs } from "./runs.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { mountAbout, mountComposer, mountErrors } from "./views/composer.js";
import { mountGallery } from "./views/gallery.js";
import { mountMessage, mountTitle } from "./views/message.js";
import { mountRun, mountWaiting } from "./views/run.js";
import { mountKeyDialog, mountNotice, mountServiceLine } from "./views/service.js";
import { mountSettings } from "./views/settings.js";
import { mountStage } from "./views/stage.js";
import { mountViewer } from "./views/viewer.js";

function main() {
  const { url, refused } = serviceAddress(location);
  const session = new Session(url);
  const store = new Store(session.restore());
  const client = new ServiceClient(url, () => store.state.key);
  const connection = new Connection(client, store);
  const gallery = new Gallery(connection, store);
  const runs = new Runs(connection, store, gallery);

  mountServiceLine(store);
  mountNotice(store, url, refused);
  mountKeyDialog(store, connection, url);
  mountComposer(store, runs);
  mountAbout(store);
  mountErrors(store);
  mountSettings(store);
  mountRun(store, runs);
  mountWaiting(store, runs);
  mountStage(store, connection, gallery);
  mountGallery(store, connection, gallery);
  mountViewer(store, connection, gallery);
  mountMessage(store);
  mountTitle(store);

  session.keep(store);
  gallery.follow();
  void runs.run();
  void connection.run();
}

main();
