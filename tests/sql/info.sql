-- What an image file says of itself.
SELECT name, i.* FROM image, clip_image_info(data) AS i ORDER BY name;
SELECT count(*) FROM clip_image_info(NULL);
SELECT * FROM outcome($$ SELECT * FROM clip_image_info('\x') $$);
SELECT * FROM outcome($$ SELECT * FROM clip_image_info('hello') $$);
SELECT * FROM outcome($$ SELECT clip_image_info('\x000000186674797069736f6d0000000069736f6d6d703432') $$);
SELECT * FROM outcome($$ SELECT clip_image_info(substr(data, 1, 20)) FROM image WHERE name = 'cat.png' $$);
