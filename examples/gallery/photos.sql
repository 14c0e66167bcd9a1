-- The gallery's photos: for each subject the photo, its mirror image and a crop of 90 %.
-- Included by gallery.sql, with psql standing in examples/gallery. Credits: photos/LICENSES.md.

\set file cat           \set title 'Tabby Cat'     \set keywords '{cat,feline,pet,animal}'
\ir insert.sql
\set file espresso      \set title 'Espresso'      \set keywords '{espresso,coffee,drink}'
\ir insert.sql
\set file rocket        \set title 'Rocket'        \set keywords '{rocket,launch,space}'
\ir insert.sql
\set file photographer  \set title 'Photographer'  \set keywords '{photographer,tripod,person}'
\ir insert.sql
\set file pagoda        \set title 'Pagoda'        \set keywords '{pagoda,palace,building}'
\ir insert.sql
\set file dahlia        \set title 'Dahlia'        \set keywords '{dahlia,flower,plant}'
\ir insert.sql
\set file raccoon       \set title 'Raccoon'       \set keywords '{raccoon,wildlife,animal}'
\ir insert.sql
\set file staircase     \set title 'Staircase'     \set keywords '{staircase,steel,building}'
\ir insert.sql
\set file clock         \set title 'Wall Clock'    \set keywords '{clock,time}'
\ir insert.sql
\set file deep-field    \set title 'Deep Space'    \set keywords '{galaxies,astronomy,space}'
\ir insert.sql
