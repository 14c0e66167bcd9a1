import { drizzle } from 'drizzle-orm/node-postgres';
import { eq } from 'drizzle-orm';
import pg from 'pg';
import * as page from './page.mjs';
import { run } from './program.mjs';

const pool = new pg.Pool();
const db = drizzle(pool);
await run(page, db, (error) => error.cause.code);
// The columns that the watch keeps are read back.
const [cat] = await db.select().from(page.photo).where(eq(page.photo.title, 'cat'));
if (cat.embedding.length !== 512 || cat.clusterId === null) throw new Error('the cat has no embedding');
await pool.end();
