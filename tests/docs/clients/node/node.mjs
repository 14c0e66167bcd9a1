import pg from 'pg';
import * as page from './page.mjs';
import { run } from './program.mjs';

const pool = new pg.Pool();
await run(page, pool, (error) => error.code);
await pool.end();
