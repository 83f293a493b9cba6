"use strict";
atlas.start();
