// What every client's program does (../README.md), for the two of Node.js.
import fs from 'node:fs';
import path from 'node:path';

const show = (...fields) =>
  console.log(fields.map((field) => String(field ?? '').split(/\s+/).join(' ')).join('\t'));

export async function run({ add, search, similar, groups }, db, sqlstate) {
  const photo = (name) => fs.readFileSync(path.join(process.argv[2], `${name}.jpg`));
  for (const name of ['cat', 'cat-cropped', 'rocket', 'dahlia']) show('added', await add(db, name, photo(name)));
  show('bad', await add(db, 'notes', Buffer.from('not an image')));
  show('unsupported', await add(db, 'drawing', Buffer.from("<svg xmlns='http://www.w3.org/2000/svg'/>")));
  try {
    await add(db, 'forbidden', photo('cat'));
  } catch (error) {
    show('other', sqlstate(error));
  }
  for (const row of await search(db, 'a rocket on its way to space', 2)) {
    show('found', row.title);
    if (!(Math.abs(row.cosine) <= 1)) throw new Error(`a cosine of ${row.cosine}`);
  }
  for (const row of await similar(db, photo('cat-mirrored'), 1)) show('similar', row.title);
  for (const row of await groups(db)) show('group', row.size, row.title);
}
