-- The gallery's photos: for each subject the photo, its mirror image and a crop of 90 %.
-- Included by gallery.sql, with psql standing in examples/gallery. Credits: photos/LICENSES.md.

\set file cat           \set title 'Tabby Cat'     \set keywords '{cat,feline,pet,animal}'
\set credit 'Stefan van der Walt, CC0'
\ir insert.sql
\set file espresso      \set title 'Espresso'      \set keywords '{espresso,coffee,drink}'
\set credit 'Rachel Michetti (Pikolo Espresso Bar), CC0'
\ir insert.sql
\set file rocket        \set title 'Rocket'        \set keywords '{rocket,launch,space}'
\set credit 'SpaceX, public domain'
\ir insert.sql
\set file photographer  \set title 'Photographer'  \set keywords '{photographer,tripod,person}'
\set credit 'Lav Varshney, CC0'
\ir insert.sql
\set file pagoda        \set title 'Pagoda'        \set keywords '{pagoda,palace,building}'
\set credit 'danielbuechele (Flickr), CC BY 2.0'
\ir insert.sql
\set file dahlia        \set title 'Dahlia'        \set keywords '{dahlia,flower,plant}'
\set credit 'vultilion (Flickr), CC BY 2.0'
\ir insert.sql
\set file raccoon       \set title 'Raccoon'       \set keywords '{raccoon,wildlife,animal}'
\set credit 'public-domain-image.com, public domain'
\ir insert.sql
\set file staircase     \set title 'Staircase'     \set keywords '{staircase,steel,building}'
\set credit 'public-domain-image.com, public domain'
\ir insert.sql
\set file clock         \set title 'Wall Clock'    \set keywords '{clock,time}'
\set credit 'Michael Breuer (Open Clip Art Library), public domain'
\ir insert.sql
\set file deep-field    \set title 'Deep Space'    \set keywords '{galaxies,astronomy,space}'
\set credit 'NASA (Hubble eXtreme Deep Field), public domain'
\ir insert.sql
